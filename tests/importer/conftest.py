"""The import probe: a C++ program that reads models and reports what became of them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Sanitized builds are slower and keep freed memory: their runs check behaviour, not cost.
SANITIZED = bool(os.environ.get("KVIK_TEST_SANITIZED"))


@dataclass(frozen=True)
class Result:
    ok: bool
    code: str  # "invalid model", "unsupported", ...; "" when ok
    message: str
    seconds: float
    peak_mib: float  # growth of the resident set's peak while reading
    output: str  # dump and constants

    def expect_error(self, code: str | tuple[str, ...], *parts: str) -> None:
        codes = (code,) if isinstance(code, str) else code
        assert not self.ok, f"imported:\n{self.output}"
        assert self.code in codes, f"{self.code}: {self.message}"
        for part in parts:
            assert part in self.message, f"{part!r} is not in {self.message!r}"


def find_probe() -> Path:
    chosen = os.environ.get("KVIK_IMPORT_PROBE")
    if chosen:
        return Path(chosen)
    found = sorted(
        ROOT.glob("build/**/tests/importer/kvik_import_probe"),
        key=lambda path: path.stat().st_mtime,
    )
    if not found:
        raise FileNotFoundError("kvik_import_probe is not built: build with KVIK_BUILD_TESTS=ON")
    return found[-1]


def run_probe(probe: Path, path: Path, *options: str) -> Result:
    run = subprocess.run([probe, *options, str(path)], capture_output=True, timeout=60, check=False)
    text = run.stdout.decode()
    assert run.returncode == 0, f"the probe ended with {run.returncode}: {run.stderr.decode()}"
    first, _, rest = text.partition("\n")
    match = re.fullmatch(r"(?:ok|error (.+?)) (\d+) (\d+)(?:: (.*))?", first)
    assert match, f"not understood: {text[:500]!r}"
    code, microseconds, kib, message = match.groups()
    result = Result(
        ok=code is None,
        code=code or "",
        message=message or "",
        seconds=int(microseconds) / 1e6,
        peak_mib=int(kib) / 1024,
        output=rest,
    )
    # What holds for every input, good or bad.
    if not SANITIZED:
        assert result.seconds < 1, f"took {result.seconds} s"
        size = path.stat().st_size / 2**20 if path.is_file() else 0
        assert result.peak_mib < size + 64, f"took {result.peak_mib} MiB for {size} MiB"
    assert str(path.parent) in result.message or result.ok
    return result


@pytest.fixture(scope="session")
def probe() -> Path:
    return find_probe()


Import = Callable[..., Result]


@pytest.fixture
def import_model(probe: Path, tmp_path: Path) -> Import:
    """Imports a model: its path, its bytes, or a ModelProto, with options of the probe."""

    def run(model: object, *options: str) -> Result:
        if isinstance(model, Path):
            return run_probe(probe, model, *options)
        content = model if isinstance(model, bytes) else model.SerializeToString()  # type: ignore[attr-defined]
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        return run_probe(probe, path, *options)

    return run
