"""Builds the C++ tests (preset dev, build/dev) and runs each of them as a case of this suite."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "dev"
SCRIPTS = Path(sys.executable).parent  # cmake, ctest and ninja come from PyPI into the environment
ENVIRONMENT = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
SECONDS_PER_TEST = 600


def run(*command, timeout=3600):
    program = shutil.which(command[0], path=ENVIRONMENT["PATH"])
    if program is None:
        return 127, f"{command[0]} is not installed: pip install cmake ninja"
    done = subprocess.run(
        [program, *command[1:]],
        cwd=ROOT,
        env=ENVIRONMENT,
        timeout=timeout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return done.returncode, done.stdout


def build():
    """Configure and build; the output of the step that failed, or None."""
    for command in (["cmake", "--preset", "dev"], ["cmake", "--build", "--preset", "dev"]):
        status, output = run(*command)
        if status != 0:
            return f"{' '.join(command)} exited with {status}\n{output}"
    return None


def pytest_generate_tests(metafunc):
    if "ctest_name" not in metafunc.fixturenames:
        return
    failure = build()
    names = []
    if failure is None:
        status, listing = run("ctest", "--test-dir", str(BUILD), "--show-only=json-v1")
        if status == 0:
            names = [test["name"] for test in json.loads(listing)["tests"]]
        failure = listing if status != 0 else None if names else "ctest found no tests in build/dev"
    cases = [pytest.param(None, failure, id="build")]
    cases += [pytest.param(name, None, id=name) for name in names]
    metafunc.parametrize("ctest_name, failure", cases)


def test_ctest(ctest_name, failure):
    if failure is not None:
        pytest.fail(failure, pytrace=False)
    if ctest_name is None:
        return  # the build itself
    pattern = "^" + "".join(c if c.isalnum() or c in "_-" else f"\\{c}" for c in ctest_name) + "$"
    status, output = run(
        "ctest", "--test-dir", str(BUILD), "--output-on-failure", "--no-tests=error",
        "--tests-regex", pattern, "--timeout", str(SECONDS_PER_TEST),
    )  # fmt: skip
    if status != 0:
        pytest.fail(f"ctest {ctest_name} exited with {status}\n{output}", pytrace=False)
