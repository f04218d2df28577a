"""ONNX's own node tests, for every operator that the engine has.

Tolerances are the suite's (rtol 1e-3, atol 1e-7 unless a test sets its own); dtypes and shapes must
be exact. A test that the engine refuses must be covered by ``onnx_node_unsupported.txt``, and what
that file covers must be refused: an operator that is added leaves the file.
"""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.backend.test.case.test_case import TestCase

from .engine import Array, Case, Result, find_probe, run_batch

EXPECTED_FILE = Path(__file__).with_name("onnx_node_unsupported.txt")


@cache
def node_cases() -> dict[str, TestCase]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, from the suite's own arithmetic
        return {case.name: case for case in load_model_tests(kind="node")}


@cache
def expected_unsupported() -> dict[str, str]:
    """Patterns of test names with their reasons: ``PATTERN  # reason`` per line."""
    patterns = {}
    for line in EXPECTED_FILE.read_text().splitlines():
        pattern, _, reason = line.partition("#")
        if pattern.strip():
            patterns[pattern.strip()] = reason.strip()
    return patterns


def reason_for(name: str) -> str | None:
    for pattern, reason in expected_unsupported().items():
        if fnmatch.fnmatchcase(name, pattern):
            return reason
    return None


def as_array(value: object) -> Array | None:
    """The numpy array of a test's value; None for sequences, optionals and strings."""
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    if isinstance(value, (np.generic, float, int)):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind in "OUS":
        return None
    return value


def data_sets(case: TestCase) -> list[tuple[dict[str, Array] | None, list[object]]]:
    """Inputs by name and outputs of each data set; inputs are None where they are no tensors."""
    assert case.model is not None and case.data_sets is not None
    names = [value.name for value in case.model.graph.input]
    sets: list[tuple[dict[str, Array] | None, list[object]]] = []
    for inputs, outputs in case.data_sets:
        arrays = {name: as_array(value) for name, value in zip(names, inputs)}
        usable = all(array is not None for array in arrays.values())
        sets.append(
            ({k: v for k, v in arrays.items() if v is not None} if usable else None, list(outputs))
        )
    return sets


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Result]]:
    """What the engine gave, by test and data set, from one run of all of them."""
    if find_probe() is None:
        pytest.skip("kvik_run_probe is not built")
    batch = []
    for name, case in node_cases().items():
        for number, (inputs, _) in enumerate(data_sets(case)):
            if inputs is not None:
                batch.append(Case(f"{name}/{number}", case.model, inputs))
    run = run_batch(batch, tmp_path_factory.mktemp("node"))
    return {
        name: [
            run.get(f"{name}/{number}", Result(error="unsupported: inputs that are no tensors"))
            for number in range(len(case.data_sets or []))
        ]
        for name, case in node_cases().items()
    }


def compare(got: Array, wanted: object, case: TestCase) -> None:
    expected = as_array(wanted)
    assert expected is not None
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    if expected.dtype.kind in "biu" or expected.dtype.name in ("int4", "uint4"):
        np.testing.assert_array_equal(got, expected)
    else:
        np.testing.assert_allclose(
            got.astype(np.float64), expected.astype(np.float64), rtol=case.rtol, atol=case.atol
        )


@pytest.mark.parametrize("name", sorted(node_cases()))
def test_node(name: str, results: dict[str, list[Result]]) -> None:
    case = node_cases()[name]
    reason = reason_for(name)
    for result, (_, wanted) in zip(results[name], data_sets(case)):
        if reason is not None:
            assert result.unsupported, f"now runs, or fails: take it out of {EXPECTED_FILE.name}"
            pytest.skip(reason)
        assert result.error is None, result.error
        assert len(result.outputs) == len(wanted)
        for got, expected in zip(result.outputs.values(), wanted):
            compare(got, expected, case)


def test_expected_unsupported_is_exact() -> None:
    """Every pattern covers a test, so that the file does not gather dust."""
    for pattern in expected_unsupported():
        assert fnmatch.filter(node_cases(), pattern), f"{pattern} matches no test"


def test_counts(results: dict[str, list[Result]], record_property: object) -> None:
    """How much of the suite runs, as a table (``pytest -s``); never less than before."""
    counts: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for name in results:
        refused = any(result.unsupported for result in results[name])
        counts["unsupported" if refused else "run"] += 1
        for result in results[name]:
            found = re.search(r"does not have: (.*)", result.error or "")
            missing.update(found.group(1).split(", ") if found else [])
    total = sum(counts.values())
    print(f"\nONNX {onnx.__version__} node tests: {total}")
    for kind, count in counts.most_common():
        print(f"  {kind:12} {count:5}  {100 * count / total:5.1f} %")
    print("  most wanted:", ", ".join(f"{op} ({n})" for op, n in missing.most_common(12)))
    assert counts["run"] >= 1000
