"""The exported models of the parity tests, each made when a test first asks for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from parity.models import default_folder, export_case
from parity.zoo.registry import Case


@pytest.fixture(scope="session")
def model_file() -> Callable[[Case], Path]:
    """The file of a case. Kept below build/ for as long as nothing it depends on changes."""
    folder = default_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return cache(lambda case: export_case(case, folder))
