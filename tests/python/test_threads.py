"""Several Python threads on one model and on one session; the GIL; fork."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import kvik


def test_two_threads_use_one_model(plain):
    prompts = [[1, 2, 3], [200, 100], [9], list(range(30))]
    options = {"max_new_tokens": 20, "temperature": 0.9, "seed": 5}
    expected = [plain.generate(prompt, **options) for prompt in prompts]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            assert list(pool.map(lambda p: plain.generate(p, **options), prompts)) == expected


def test_streams_of_one_model_interleave(plain):
    expected = [plain.generate([i], max_new_tokens=10) for i in range(3)]
    streams = [plain.stream([i], max_new_tokens=10) for i in range(3)]
    found = [list(column) for column in zip(*zip(*streams, strict=True), strict=True)]
    assert found == expected


def test_sixteen_threads_use_one_session(session_path):
    session = kvik.InferenceSession(session_path, threads=2)

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            x = rng.standard_normal((int(rng.integers(1, 40)), 3)).astype(np.float32)
            y, n = session.run(None, {"x": x})
            expected = x @ np.arange(6, dtype=np.float32).reshape(3, 2) + 1
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
            assert n[0] == len(x)
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))


def test_the_gil_is_released(long_path):
    """While one thread computes a long prefill, another one runs Python."""
    model = kvik.load(long_path, threads=1)
    ids = np.arange(3000) % 250
    done = threading.Event()

    def prefill():
        model.generate(ids, max_new_tokens=1)
        done.set()

    worker = threading.Thread(target=prefill)
    worker.start()
    turns = 0
    while not done.is_set():
        turns += 1
        time.sleep(0.001)
    worker.join()
    # Had the GIL been held, the loop could not have turned while the engine was at work.
    assert turns > 5


def test_a_forked_child_gets_a_clear_error(plain):
    """The engine's threads do not exist in the child: an error says so, nothing hangs."""
    expected = plain.generate([1], max_new_tokens=2)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            plain.generate([1], max_new_tokens=2)
            os.write(write, b"no error")
        except kvik.InvalidArgumentError as error:
            os.write(write, str(error).encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert "fork" in said
    assert plain.generate([1], max_new_tokens=2) == expected
