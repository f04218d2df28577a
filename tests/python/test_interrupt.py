"""Ctrl-C stops what the engine is doing, soon, and the model works on."""

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

# The parent interrupts when it reads "go"; the child must come out of each call at once.
PROGRAM = """
import sys, time
import numpy as np
import kvik

model = kvik.load(sys.argv[1], threads=2)
expected = model.generate([1, 2], max_new_tokens=5)

def generate():
    for i, token in enumerate(model.stream([1], max_new_tokens=190_000)):
        if i == 3:
            print("go", flush=True)

def prefill():
    print("go", flush=True)
    model.generate(np.arange(150_000) % 250, max_new_tokens=1)

try:
    {"generate": generate, "prefill": prefill}[sys.argv[2]]()
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted", flush=True)
assert model.generate([1, 2], max_new_tokens=5) == expected
print("works on")
"""


@pytest.mark.parametrize("call", ["generate", "prefill"])
def test_ctrl_c(long_path, call):
    command = [sys.executable, "-c", PROGRAM, str(long_path), call]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout.readline() == "go\n"
        time.sleep(0.3)
        start = time.monotonic()
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
        seconds = time.monotonic() - start
    assert (out, err, p.returncode) == ("interrupted\nworks on\n", "", 0)
    # Uninterrupted, either call takes minutes; the time is generous for a busy machine.
    assert seconds < 20


# A loop of 2^63 - 1 trips; loading the model must not run it.
LOOP_PROGRAM = """
import sys
import numpy as np
import kvik

if sys.argv[2] == "session":
    session = kvik.InferenceSession(sys.argv[1], threads=1)
    call = lambda: session.run(None, {"ids": np.array([[1, 2]])})
else:
    model = kvik.load(sys.argv[1], threads=1)
    call = lambda: model.generate([1, 2], max_new_tokens=1)
print("go", flush=True)
try:
    call()
except KeyboardInterrupt:
    print("interrupted")
"""


def save_loop(path, width):
    """logits = embedding[ids], carried through an endless loop; declared [batch, sequence, width].

    Where ``width`` is None the file says nothing of the logits' shape, as little as inference.
    """
    carried = [
        helper.make_tensor_value_info("trip", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
    ]
    results = [
        helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    trip = [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Neg", ["x"], ["y"])]
    body = helper.make_graph(trip, "body", carried, results)
    nodes = [
        helper.make_node("Gather", ["embedding", "ids"], ["embedded"]),
        helper.make_node("Loop", ["trips", "", "embedded"], ["logits"], body=body),
    ]
    weights = [
        numpy_helper.from_array(np.ones((97, 97), np.float32), "embedding"),
        numpy_helper.from_array(np.array(2**63 - 1), "trips"),
    ]
    shape = None if width is None else ["batch", "sequence", width]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "endless", [ids], [logits], weights)
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)


@pytest.mark.parametrize("call", ["session", "generate"])
def test_ctrl_c_ends_a_loop(tmp_path, call):
    save_loop(tmp_path / "loop.onnx", 97)
    command = [sys.executable, "-c", LOOP_PROGRAM, str(tmp_path / "loop.onnx"), call]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        try:
            watchdog = threading.Timer(60, p.kill)
            watchdog.start()
            assert p.stdout.readline() == "go\n"
            time.sleep(0.3)
            p.send_signal(signal.SIGINT)
            out, err = p.communicate()
        finally:
            watchdog.cancel()
            p.kill()
    assert (out, err, p.returncode) == ("interrupted\n", "", 0)


def test_loading_runs_no_loop(tmp_path):
    save_loop(tmp_path / "loop.onnx", None)
    program = "import sys, kvik; kvik.load(sys.argv[1], threads=1)"
    command = [sys.executable, "-c", program, str(tmp_path / "loop.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "UnsupportedError" in done.stderr
    assert "the size of the last dimension of its output 'logits'" in done.stderr


def test_ctrl_c_ends_the_command(long_path):
    command = [sys.executable, "-m", "kvik.cli", "generate", str(long_path), "a", "-n", "190000"]
    command += ["--no-end"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
