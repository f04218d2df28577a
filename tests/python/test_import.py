"""`import kvik` is light, and its public names are documented."""

import json
import subprocess
import sys

import kvik

PROGRAM = """
import json, sys, time
import numpy
start = time.perf_counter()
import kvik
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted(sys.modules)]))
"""
HEAVY = ["torch", "onnx", "onnxruntime", "onnxscript", "transformers", "tokenizers", "typer",
         "rich", "matplotlib", "kvik_train", "kvik_export"]  # fmt: skip


def test_import_loads_nothing_heavy_and_is_quick():
    runs = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
        )
        seconds, modules = json.loads(done.stdout)
        assert not set(HEAVY) & set(modules)
        runs.append(seconds)
    assert min(runs) < 0.5, "what kvik adds to numpy's own import"


def test_generating_from_ids_needs_no_tokenizers(plain_path):
    program = (
        "import sys, kvik; kvik.load(sys.argv[1]).generate([1], max_new_tokens=2);"
        "assert 'tokenizers' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(plain_path)], check=True)


def test_public_names_exist_and_are_documented():
    for name in kvik.__all__:
        thing = getattr(kvik, name)
        assert name == "__version__" or thing.__doc__, f"{name} has no docstring"
    assert kvik.__version__.count(".") == 2


def test_version_is_the_header_s():
    from pathlib import Path

    header = Path(__file__).parents[2] / "cpp" / "include" / "kvik" / "version.h"
    assert f'KVIK_VERSION "{kvik.__version__}"' in header.read_text()


def test_error_classes_derive_from_builtins():
    assert issubclass(kvik.InvalidArgumentError, ValueError)
    assert issubclass(kvik.InvalidModelError, ValueError)
    assert issubclass(kvik.FileError, OSError)
    assert issubclass(kvik.OutOfMemoryError, MemoryError)
    assert issubclass(kvik.UnsupportedError, NotImplementedError)
