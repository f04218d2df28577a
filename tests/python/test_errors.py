"""Each error code of the engine arrives in Python as its class and as the expected built-in."""

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


def test_every_code_is_listed():
    with pytest.raises(kvik.InvalidArgumentError, match="no error has this code"):
        _core._raise_error(len(CLASSES), "")
