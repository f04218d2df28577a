"""The checked-in type stubs are those that the built extension generates."""

import subprocess
import sys
from pathlib import Path

STUB = Path(__file__).parents[2] / "python" / "kvik" / "_core.pyi"


def test_stubs_are_up_to_date(tmp_path):
    fresh = tmp_path / "_core.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "--quiet", "-m", "kvik._core"]
    subprocess.run([*command, "-o", fresh], check=True, timeout=120)
    assert STUB.read_text() == fresh.read_text(), "the extension has changed: run make stubs"
