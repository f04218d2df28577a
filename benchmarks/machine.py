"""Where a run's figures are from: the machine and the commit."""

from __future__ import annotations

import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """The machine, with the instruction sets that matter to engines."""
    from kvik.bench.machine import describe_machine

    machine = asdict(describe_machine())
    info = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("flags"):
                flags = set(line.split())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return machine | {"flags": [flag for flag in wanted if flag in flags]}


def commit() -> str:
    """Of this working tree, "-dirty" where files differ; empty outside one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
