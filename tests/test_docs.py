"""The documents' commands, code and links work as they are printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cpp/README.md")
EXAMPLE = "cpp/examples/generate/main.cpp"
# A real training takes minutes; what the commands after it need is a checkpoint.
SHORTER = {
    "train": ["--steps", "20", "--max-bytes", "300000"],
    "finetune": ["--steps", "5", "--max-examples", "200"],
}


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(document: str, program: str) -> list[list[str]]:
    """The lines of the document's shell blocks that run a program, split into words."""
    lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.partition("  #")[0].split("&&")]
    words = [shlex.split(part) for part in parts]
    return [line for line in words if line and line[0] == program]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's kvik commands have been run, one after the other."""
    place = tmp_path_factory.mktemp("readme")
    # The other blocks measure a model of 500 MB.
    lines = [line for line in commands("README.md", "kvik") if "gpt2.onnx" not in line]
    assert [line[1] for line in lines[:2]] == ["train", "export"]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    for line in lines:
        command = [sys.executable, "-m", "kvik.cli", *line[1:], *SHORTER.get(line[1], [])]
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return place


def test_readme_commands(folder: Path) -> None:
    assert (folder / "gpt.onnx").stat().st_size > 1_000_000
    assert "<svg" in (folder / "gpt.svg").read_text()


def test_readme_python(folder: Path) -> None:
    found = blocks("README.md", "python")
    proofs = [
        "incremental: every row of 'logits'",
        "by sequence: 'logits' is computed",
        "earlier ones, and the source alone",
    ]
    for block, proof in zip(found, proofs, strict=True):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert proof in done.stdout


def test_readme_cpp_is_a_part_of_the_example() -> None:
    source = (ROOT / EXAMPLE).read_text()
    found = blocks("README.md", "cpp")
    assert found
    for block in found:
        assert block in source


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_and_presets_exist(document: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in commands(document, "make"):
        for target in (word for word in line[1:] if "=" not in word):
            assert re.search(rf"^{target}:.*  ## ", makefile, re.MULTILINE), target
    presets = json.loads((ROOT / "CMakePresets.json").read_text())
    known = {preset["name"] for preset in presets["configurePresets"]}
    for program in ("cmake", "ctest"):
        for line in commands(document, program):
            if "--preset" in line:
                assert line[line.index("--preset") + 1] in known


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    place = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
        if "://" not in target:
            assert (place / target).exists(), target


def test_named_paths_exist() -> None:
    """Files and folders that the documents name in code style."""
    for document in DOCUMENTS:
        text = re.sub(
            r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.MULTILINE | re.DOTALL
        )
        for name in re.findall(r"`((?:cpp|python|export|tests|benchmarks)/[^`<*]*)`", text):
            assert (ROOT / name).exists(), f"{document} names {name}"
