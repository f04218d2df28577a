"""External data: inside the model's folder, of the right size, and nothing else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from onnx import StringStringEntryProto, TensorProto, helper

from .conftest import Import, run_probe
from .models import field, model, tensor, wire_graph, wire_model

INVALID = "invalid model"
IO = "input/output error"


def external(entries: list[tuple[str, str]], dims: list[int] | None = None) -> bytes:
    """The model y = x + w whose w lies elsewhere."""
    keys = [StringStringEntryProto(key=key, value=value) for key, value in entries]
    w = TensorProto(
        name="w", dims=dims or [4], data_type=TensorProto.FLOAT, data_location=1, external_data=keys
    )
    made = model([helper.make_node("Add", ["x", "w"], ["y"])])
    made.graph.initializer.append(w)
    return made.SerializeToString()


def at(location: str, **entries: object) -> bytes:
    pairs = [("location", location)]
    return external(pairs + [(key, str(value)) for key, value in entries.items()])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The model's folder, with 16 bytes of data; its parent holds a secret."""
    (tmp_path / "secret").write_bytes(b"s" * 16)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "data").write_bytes(bytes(range(16)))
    return inside


@pytest.fixture
def import_in(import_model: Import, folder: Path) -> Import:
    def run(content: bytes, *options: str) -> object:
        path = folder / "model.onnx"
        path.write_bytes(content)
        return import_model(path, *options)

    return run


DATA = bytes(range(16)).hex()


@pytest.mark.parametrize(
    "entries",
    [{}, {"offset": 0}, {"length": 16}, {"offset": 0, "length": 16}, {"basepath": "/elsewhere"}],
)
def test_valid(import_in: Import, entries: dict[str, object]) -> None:
    result = import_in(at("data", **entries), "--constants")
    assert f"w float32 [4] {DATA}" in result.output, result.message


@pytest.mark.parametrize(
    ("location", "named"),
    [
        ("../secret", "'..'"),
        ("a/../../secret", "'..'"),
        ("..", "'..'"),
        ("data/..", "'..'"),
        ("/etc/passwd", "absolute"),
        ("//host/share", "absolute"),
        ("C:\\data", "backslash"),
        ("C:/data", "drive"),
        ("c:data", "drive"),
        ("\\\\host\\share", "backslash"),
        ("..\\secret", "backslash"),
        ("", "empty"),
        ("data\0.txt", "NUL"),
        ("*/_ORT_MEM_ADDR_/*", "memory"),
        ("a/_ORT_MEM_ADDR_/b", "memory"),
    ],
)
def test_location_outside(import_in: Import, location: str, named: str) -> None:
    import_in(at(location, offset=0, length=16)).expect_error(INVALID, "initializer 'w'", named)


def test_missing_file(import_in: Import) -> None:
    import_in(at("absent")).expect_error(IO, "initializer 'w'", "'absent'", "No such file")


def test_symlink_inside(import_in: Import, folder: Path) -> None:
    (folder / "link").symlink_to("data")
    assert DATA in import_in(at("link"), "--constants").output


@pytest.mark.parametrize("target", ["../secret", "absolute", "/dev/zero"])
def test_symlink_outside(import_in: Import, folder: Path, target: str) -> None:
    destination = str(folder.parent / "secret") if target == "absolute" else target
    (folder / "link").symlink_to(destination)
    import_in(at("link")).expect_error(INVALID, "initializer 'w'", "'link'", "outside")


def test_folder_symlink_outside(import_in: Import, folder: Path) -> None:
    (folder / "up").symlink_to("..")
    import_in(at("up/secret")).expect_error(INVALID, "'up/secret'", "outside")


def test_folder_with_a_common_prefix(import_in: Import, folder: Path) -> None:
    """'inside2' begins with 'inside' and is another folder."""
    other = folder.parent / "inside2"
    other.mkdir()
    (other / "data").write_bytes(bytes(16))
    (folder / "link").symlink_to("../inside2/data")
    import_in(at("link")).expect_error(INVALID, "outside")


def test_hard_link(import_in: Import, folder: Path) -> None:
    os.link(folder.parent / "secret", folder / "linked")
    import_in(at("linked")).expect_error(IO, "initializer 'w'", "2 hard links", "copy")


def test_hugging_face_cache(import_model: Import, tmp_path: Path) -> None:
    """Model and data are links from a snapshot into the folder of blobs."""
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1234" / "onnx"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "aaaa").write_bytes(at("model.onnx_data", offset=0, length=16))
    (blobs / "bbbb").write_bytes(bytes(range(16)))
    (snapshot / "model.onnx").symlink_to("../../../blobs/aaaa")
    (snapshot / "model.onnx_data").symlink_to("../../../blobs/bbbb")
    result = import_model(snapshot / "model.onnx", "--constants")
    assert DATA in result.output, result.message
    (tmp_path / "secret").write_bytes(bytes(16))
    (snapshot / "model.onnx_data").unlink()
    (snapshot / "model.onnx_data").symlink_to(tmp_path / "secret")
    import_model(snapshot / "model.onnx").expect_error(INVALID, "outside")


def test_special_files(import_in: Import, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    (folder / "directory").mkdir()
    import_in(at("fifo")).expect_error(IO, "initializer 'w'", "a FIFO")
    import_in(at("directory")).expect_error(IO, "initializer 'w'", "a directory")


def test_the_model_itself_is_a_special_file(probe: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    run_probe(probe, tmp_path / "fifo").expect_error(IO, "a FIFO")
    run_probe(probe, tmp_path).expect_error(IO, "a directory")
    run_probe(probe, Path("/dev/zero")).expect_error(IO, "a device")
    run_probe(probe, tmp_path / "absent").expect_error(IO, "No such file")


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize(
    "number", ["-1", "abc", "", " 16", "16 ", "+16", "0x10", "1e1", str(2**63)]
)
def test_numbers(import_in: Import, key: str, number: str) -> None:
    import_in(at("data", **{key: number})).expect_error(INVALID, "initializer 'w'", key)


@pytest.mark.parametrize(
    ("offset", "named"),
    [
        (1, "16 bytes at offset 1 does not fit"),
        (2**63 - 1, "does not fit"),  # offset + 16 wraps
        (2**40, "does not fit"),
    ],
)
def test_range_outside_the_file(import_in: Import, offset: int, named: str) -> None:
    import_in(at("data", offset=offset, length=16)).expect_error(INVALID, named)


@pytest.mark.parametrize("length", [0, 15, 17])
def test_length_is_not_that_of_the_tensor(import_in: Import, length: int) -> None:
    import_in(at("data", length=length)).expect_error(
        INVALID, f"length {length}, float32 [4] needs 16"
    )


def test_keys(import_in: Import) -> None:
    import_in(at("data", colour="red")).expect_error(INVALID, "unknown key 'colour'")
    twice = external([("location", "data"), ("location", "data")])
    import_in(twice).expect_error(INVALID, "'location' is there twice")
    import_in(external([("offset", "0")])).expect_error(INVALID, "no location")


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000])
def test_checksum(import_in: Import, folder: Path, size: int) -> None:
    """SHA-1 over the whole file, at the lengths where its padding changes."""
    content = bytes(i % 251 for i in range(16 + size))
    (folder / "data").write_bytes(content)
    digest = hashlib.sha1(content).hexdigest()
    assert import_in(at("data", checksum=digest)).ok
    assert import_in(at("data", checksum=digest.upper())).ok
    wrong = hashlib.sha1(content + b"!").hexdigest()
    import_in(at("data", checksum=wrong)).expect_error(INVALID, "initializer 'w'", wrong, digest)


def test_raw_data_and_external_data(import_in: Import) -> None:
    entry = StringStringEntryProto(key="location", value="data")
    content = tensor([4], raw_data=bytes(16), data_location=1, external_data=[entry])
    both = wire_model(wire_graph(field(5, content)))
    import_in(both).expect_error(INVALID, "external_data and raw_data")


def test_many_tensors_in_one_file(import_in: Import, folder: Path) -> None:
    """100,000 tensors over one region: one mapping, linear time, bounded memory."""
    (folder / "data").write_bytes(bytes(16))
    entry = field(13, field(1, b"location") + field(2, b"data"))
    head = field(1, 4) + field(2, 1) + field(14, 1) + entry
    initializers = [field(5, head + field(8, b"w%d" % i)) for i in range(100_000)]
    assert import_in(wire_model(wire_graph(*initializers))).ok


@pytest.mark.parametrize("which", ["model", "data"])
def test_file_cut_while_in_use(import_in: Import, folder: Path, which: str) -> None:
    """A mapped file that shrinks is noticed before its weights are read."""
    floats = 4 * 2**20  # 16 MiB: mapped
    if which == "model":
        w = TensorProto(name="w", dims=[floats], data_type=1, raw_data=bytes(4 * floats))
        made = model([helper.make_node("Add", ["x", "w"], ["y"])], initializers=[w])
        result = import_in(made.SerializeToString(), "--cut-to=1000000")
        result.expect_error(IO, "was cut from", "1000000")
        return
    # The probe cuts the model's file: here that is the data too, by a second name.
    (folder / "data").write_bytes(bytes(4 * floats))
    (folder / "small.onnx").write_bytes(external([("location", "data")], [floats]))
    result = import_in(
        (folder / "small.onnx").read_bytes(), f"--cut-file={folder / 'data'}", "--cut-to=5"
    )
    result.expect_error(IO, "was cut from", "to 5 bytes")


def test_small_files_are_copied(import_in: Import) -> None:
    """What fits into memory is read at once: cutting the file afterwards changes nothing."""
    made = model([helper.make_node("Relu", ["x"], ["y"])])
    assert import_in(made.SerializeToString(), "--cut-to=0").ok


def test_external_data_without_a_folder(import_in: Import) -> None:
    import_in(at("data"), "--from-bytes").expect_error("invalid argument", "'w'", "by its path")
