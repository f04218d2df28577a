"""A mapped model file that is cut while it is in use is an error, not the end of the process."""

import shutil
import subprocess
import sys

import pytest

# In a process of its own: reading a lost page would be SIGBUS.
PROGRAM = """
import os, sys
import numpy as np
import kvik

path, how = sys.argv[1:]
if how == "session":
    session = kvik.InferenceSession(path, threads=1)
    call = lambda: session.run(None, {"input_ids": np.array([[1, 2, 3]])})
else:
    model = kvik._core.Model.load(path, threads=1, incremental=how == "rows")
    ids = np.array([1, 2, 3])
    call = lambda: model.forward([(model.new_sequence(), ids, kvik._core.Logits.LAST)])
call()
size = os.stat(path).st_size
os.truncate(path, 1000)
calls = [call]
if how != "session":
    calls += [lambda: model.dump(kvik._core.GraphStage.IMPORTED), model.matrices]
for call in calls:
    try:
        call()
        print("not noticed")
    except kvik.FileError as error:
        assert f"was cut from {size} to 1000 bytes while it was in use" in str(error), error
        print("noticed")
"""


@pytest.mark.parametrize("how", ["rows", "whole", "session"])
def test_a_cut_file_is_an_error(long_path, tmp_path, how):
    path = tmp_path / "long.onnx"
    shutil.copyfile(long_path, path)
    assert path.stat().st_size > 8 << 20  # what is smaller is copied, not mapped
    command = [sys.executable, "-c", PROGRAM, str(path), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    expected = "noticed\n" * (1 if how == "session" else 3)
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)


def test_a_replaced_file_is_none(long_path, tmp_path):
    path, other = tmp_path / "long.onnx", tmp_path / "other.onnx"
    shutil.copyfile(long_path, path)
    other.write_bytes(b"short")
    program = (
        "import os, sys, kvik; model = kvik.load(sys.argv[1], threads=1);"
        "before = model.generate([1, 2], max_new_tokens=3); os.replace(sys.argv[2], sys.argv[1]);"
        "assert model.generate([1, 2], max_new_tokens=3) == before"
    )
    subprocess.run([sys.executable, "-c", program, str(path), str(other)], check=True, timeout=120)
    assert path.stat().st_size == 5
