"""The layers depend on one another in one direction, as the source's includes and imports say."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Folder of cpp/: the folders whose headers it may include. Kernels and graph never see each other.
CPP = {
    "include": {"kvik"},
    "base": {"kvik"},
    "kernels": {"kvik", "base"},
    "graph": {"kvik", "base"},
    "onnx": {"kvik", "base", "graph"},
    "ops": {"kvik", "base", "kernels", "graph"},
    "runtime": {"kvik", "base", "kernels", "graph", "onnx", "ops"},
    # The bindings use the public interface; the kernel table is there for measuring its ceilings.
    "bindings": {"kvik", "base", "kernels"},
    "examples": {"kvik"},
}

# Package: what it must never import, wherever in the file the import stands.
PYTHON = {
    "python/kvik": {"torch", "onnx", "onnxscript", "kvik_train", "kvik_export"},
    "python/kvik_train": {"onnx", "onnxscript", "onnxruntime", "kvik", "kvik_export"},
    "export/kvik_export": set[str](),
}
# The one file that may import onnxruntime in the runtime package: it measures a peer.
PEER = "python/kvik/bench/engines.py"


def included(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+["<]([^">]+)[">]', path.read_text(), re.MULTILINE)


def misplaced(layer: str, path: Path, allowed: set[str]) -> list[str]:
    """Includes of `path` that name a folder of cpp/ which its layer may not see."""
    folders = {"kvik", *CPP}
    found = []
    for name in included(path):
        folder = name.partition("/")[0] if "/" in name else layer
        if folder in folders and folder not in {layer, *allowed}:
            found.append(name)
        if name.startswith(".."):
            found.append(name)
    return found


def imported(source: str) -> set[str]:
    """Top-level packages that a module imports, at its head or later; not those that only type
    checkers read."""
    tree = ast.parse(source)
    skipped = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for child in ast.walk(statement)
    }
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_every_folder_of_the_engine_has_a_place_in_the_order() -> None:
    folders = {path.name for path in (ROOT / "cpp").iterdir() if path.is_dir()}
    assert folders - {"cmake"} == set(CPP)


@pytest.mark.parametrize("layer", CPP)
def test_includes_point_down(layer: str) -> None:
    files = [*(ROOT / "cpp" / layer).rglob("*.h"), *(ROOT / "cpp" / layer).rglob("*.cpp")]
    assert files
    wrong = {str(path): misplaced(layer, path, CPP[layer]) for path in files}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize("layer", ["base", "graph", "onnx", "ops", "runtime"])
def test_names_differ_within_a_layer(layer: str, tmp_path: Path) -> None:
    """The extension is built from several sources at a time: what an anonymous namespace holds must
    differ between the files of a layer, however they are grouped."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    assert compiler is not None
    sources = sorted((ROOT / "cpp" / layer).rglob("*.cpp"))
    whole = tmp_path / "layer.cpp"
    whole.write_text("".join(f'#include "{path}"\n' for path in sources))
    flags = ["-std=c++20", "-fsyntax-only", "-w", f"-I{ROOT}/cpp", f"-I{ROOT}/cpp/include"]
    done = subprocess.run([compiler, *flags, whole], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_an_include_that_points_up_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.cpp"
    file.write_text('#include <vector>\n#include "base/dims.h"\n#include "graph/graph.h"\n')
    assert misplaced("kernels", file, CPP["kernels"]) == ["graph/graph.h"]


@pytest.mark.parametrize("package", PYTHON)
def test_imports_point_down(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        forbidden = set(PYTHON[package])
        if package == "python/kvik" and name != PEER:
            forbidden.add("onnxruntime")
        assert not imported(path.read_text()) & forbidden, name


def test_an_import_inside_a_function_is_found() -> None:
    source = "if TYPE_CHECKING:\n    import onnx\ndef f():\n    from torch import nn\n"
    assert imported(source) == {"torch"}
