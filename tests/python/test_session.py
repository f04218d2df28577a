"""InferenceSession: the onnxruntime call."""

import numpy as np
import pytest

import kvik


@pytest.fixture(scope="module")
def session(session_path):
    return kvik.InferenceSession(session_path, threads=2)


def affine(x):
    return x @ np.arange(6, dtype=np.float32).reshape(3, 2) + 1


def test_describes_itself_as_onnxruntime_does(session, session_path):
    (x,) = session.get_inputs()
    y, n = session.get_outputs()
    assert (x.name, x.type, x.shape) == ("x", "tensor(float)", ["rows", 3])
    assert (y.name, y.type, y.shape) == ("y", "tensor(float)", ["rows", 2])
    assert (n.name, n.type, n.shape) == ("n", "tensor(int64)", [1])
    ort = pytest.importorskip("onnxruntime")
    peer = ort.InferenceSession(str(session_path), providers=["CPUExecutionProvider"])
    for ours, theirs in ((session.get_inputs(), peer.get_inputs()),
                         (session.get_outputs(), peer.get_outputs())):  # fmt: skip
        assert [(a.name, a.type, a.shape) for a in ours] == [
            (b.name, b.type, b.shape) for b in theirs
        ]


def test_runs(session):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    y, n = session.run(None, {"x": x})
    np.testing.assert_allclose(y, affine(x), rtol=1e-6)
    assert n.dtype == np.int64
    assert n.tolist() == [4]


def test_outputs_by_name_and_order(session):
    x = np.ones((1, 3), np.float32)
    (n,) = session.run(["n"], {"x": x})
    assert n.tolist() == [1]
    n, y = session.run(["n", "y"], {"x": x})
    assert (n.shape, y.shape) == ((1,), (1, 2))
    assert len(session.run([], {"x": x})) == 2


def test_from_bytes(session_path):
    data = session_path.read_bytes()
    x = np.ones((2, 3), np.float32)
    for given in (data, bytearray(data), memoryview(data)):
        (y,) = kvik.InferenceSession(given).run(["y"], {"x": x})
        np.testing.assert_allclose(y, affine(x))


def test_layouts_of_feeds(session):
    """Read-only, strided, transposed, misaligned and empty arrays, and lists."""
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    expected = affine(x)
    frozen = x.copy()
    frozen.setflags(write=False)
    raw = np.zeros(x.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(np.float32).reshape(4, 3)
    misaligned[:] = x
    assert not misaligned.flags.aligned
    for feed in (frozen, np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], misaligned,
                 x[::-1][::-1]):  # fmt: skip
        np.testing.assert_allclose(session.run(["y"], {"x": feed})[0], expected)
    assert session.run(["y"], {"x": np.zeros((0, 3), np.float32)})[0].shape == (0, 2)


def test_outputs_outlive_the_session(session_path):
    session = kvik.InferenceSession(session_path)
    (y,) = session.run(["y"], {"x": np.ones((2, 3), np.float32)})
    before = y.copy()
    session.run(["y"], {"x": np.zeros((2, 3), np.float32)})
    del session
    np.testing.assert_array_equal(y, before)


GOOD = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("names", "feeds", "words"),
    [
        (None, {}, "x"),
        (None, {"x": GOOD, "z": GOOD}, "z"),
        (["nothing"], {"x": GOOD}, "nothing"),
        (None, {"x": GOOD.astype(np.float64)}, "'x' must be float32; found float64"),
        (None, {"x": GOOD.astype(np.int64)}, "'x' must be float32; found int64"),
        (None, {"x": [[1, 2, 3]]}, "'x' must be float32; found int64"),
        (None, {"x": GOOD.astype(">f4")}, "byte order"),
        (None, {"x": [[1], [1, 2]]}, "not an array"),
        (None, {"x": GOOD.astype(complex)}, "found complex128"),
        (None, {"x": np.ones((2, 4), np.float32)}, "x"),
        (None, {"x": np.ones(3, np.float32)}, "x"),
        ("y", {"x": GOOD}, "list of names"),
        (5, {"x": GOOD}, "output_names must be a list of names; found int 5"),
        ([1], {"x": GOOD}, "output_names must be names; found int 1"),
        (None, [GOOD], "must map input names"),
        (None, {1: GOOD}, "keys of input_feed must be names; found int 1"),
    ],
)
def test_bad_calls_name_what_is_wrong(session, names, feeds, words):
    with pytest.raises(kvik.InvalidArgumentError, match=words):
        session.run(names, feeds)
    assert len(session.run(None, {"x": GOOD})) == 2


def test_bad_models():
    with pytest.raises(kvik.InvalidModelError):
        kvik.InferenceSession(b"")
    with pytest.raises(kvik.InvalidArgumentError, match="path must be"):
        kvik.InferenceSession(5)


def test_extra_outputs(session_path):
    session = kvik.InferenceSession(session_path, extra_outputs=["product"])
    assert [arg.name for arg in session.get_outputs()] == ["y", "n", "product"]
    y, product = session.run(["y", "product"], {"x": GOOD})
    np.testing.assert_array_equal(y, product + 1)
    with pytest.raises(kvik.InvalidArgumentError, match="absent"):
        kvik.InferenceSession(session_path, extra_outputs=["absent"])
    for wrong in ("product", 5, [5]):
        with pytest.raises(kvik.InvalidArgumentError, match="extra_outputs must"):
            kvik.InferenceSession(session_path, extra_outputs=wrong)
