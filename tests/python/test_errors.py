"""Each error code of the engine arrives in Python as its class and as the expected built-in."""

import onnx
import onnx.helper
import onnx.parser
import pytest

import kvik
from kvik import _core

# In the order of kvik::ErrorCode.
CLASSES = [
    (kvik.InvalidArgumentError, ValueError),
    (kvik.InvalidModelError, ValueError),
    (kvik.UnsupportedError, NotImplementedError),
    (kvik.FileError, OSError),
    (kvik.OutOfMemoryError, MemoryError),
    (kvik.CancelledError, kvik.KvikError),
    (kvik.InternalError, kvik.KvikError),
]


@pytest.mark.parametrize("code", range(len(CLASSES)))
def test_code_becomes_class_and_builtin(code):
    expected, builtin = CLASSES[code]
    with pytest.raises(builtin) as caught:
        _core._raise_error(code, "tensor w: expected 4 bytes, found 3")
    assert type(caught.value) is expected
    assert isinstance(caught.value, kvik.KvikError)
    assert str(caught.value) == "tensor w: expected 4 bytes, found 3"


def test_messages_quote_bytes_that_are_no_text():
    graph = onnx.parser.parse_graph(
        "g (float[1, 1, 4] x, float[1, 1, 1] w) => (y) { y = Conv(x, w) }"
    )
    attribute = graph.node[0].attribute.add(name="auto_pad", type=onnx.AttributeProto.STRING)
    attribute.s = b"A\x83\xffD"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    with pytest.raises(kvik.InvalidModelError, match=r"A\\x83\\xffD"):
        kvik.InferenceSession(model.SerializeToString())


def test_every_code_is_listed():
    with pytest.raises(kvik.InvalidArgumentError, match="no error has this code"):
        _core._raise_error(len(CLASSES), "")
