"""Exports the models of the parity tests: python tests/parity/models.py [--wide] FOLDER [PART...]

Each is written once; a file that is there already is left alone. PART chooses the names that hold
it; --wide adds the architectures that a run of the suite leaves out.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from parity.zoo import all_cases
from parity.zoo.registry import Case


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
    wide = "--wide" in arguments
    arguments = [argument for argument in arguments if argument != "--wide"]
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[0])
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
