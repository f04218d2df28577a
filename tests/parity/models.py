"""Exports the models of the parity tests: python tests/parity/models.py [--wide] [FOLDER] [PART...]

Each is written once; a file that is there already is left alone. Without FOLDER they go where the
tests look for them. PART chooses the names that hold it; --wide adds the architectures that a run
of the suite leaves out.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from parity.zoo import all_cases
from parity.zoo.registry import Case

ROOT = Path(__file__).parents[2]
# What an exported file depends on: these packages, and the sources that build and export models.
PACKAGES = ("torch", "onnxscript", "onnx-ir", "onnx", "transformers", "numpy")
SOURCES = ("tests/parity/zoo", "export/kvik_export", "python/kvik_train/models")


def default_folder() -> Path:
    """A folder below build/ for exactly these versions; $KVIK_TEST_MODELS goes before it."""
    if chosen := os.environ.get("KVIK_TEST_MODELS"):
        return Path(chosen)
    digest = hashlib.sha256()
    for package in PACKAGES:
        digest.update(f"{package}={version(package)}\n".encode())
    for source in SOURCES:
        for file in sorted((ROOT / source).glob("*.py")):
            digest.update(file.read_bytes())
    return ROOT / "build" / "test-models" / digest.hexdigest()[:12]


def export_case(case: Case, folder: Path) -> Path:
    """The case's file in `folder`, made if it is not there."""
    path = folder / f"{case.name}.onnx"
    if not path.exists():
        partial = folder / f".{case.name}.{os.getpid()}.onnx"
        try:
            case.build(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def main(arguments: list[str]) -> int:
    if "--help" in arguments:
        print(__doc__)
        return 0
    wide = "--wide" in arguments
    arguments = [argument for argument in arguments if argument != "--wide"]
    folder = Path(arguments[0]) if arguments else default_folder()
    folder.mkdir(parents=True, exist_ok=True)
    failures = 0
    for case in all_cases(wide=wide):
        if arguments[1:] and not any(part in case.name for part in arguments[1:]):
            continue
        start = time.monotonic()
        try:
            path = export_case(case, folder)
        except Exception as error:
            failures += 1
            first = next((line for line in str(error).splitlines() if line.strip()), "")
            print(f"{case.name:44} FAILED {type(error).__name__}: {first[:150]}", flush=True)
            continue
        seconds = time.monotonic() - start
        print(f"{case.name:44} {path.stat().st_size:>9,} bytes {seconds:6.1f} s", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
