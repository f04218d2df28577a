"""Ctrl-C stops what the engine is doing, soon, and the model works on."""

import signal
import subprocess
import sys
import time

import pytest

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


def test_ctrl_c_ends_the_command(long_path):
    command = [sys.executable, "-m", "kvik.cli", "generate", str(long_path), "a", "-n", "190000"]
    command += ["--no-end"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
