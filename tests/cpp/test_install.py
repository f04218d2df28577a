"""Installs the C++ library, builds the example project against it, and compares its tokens with
those of the Python package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import kvik

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "dev"
EXAMPLE = ROOT / "cpp" / "examples" / "generate"
SCRIPTS = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
PROMPT = [3, 14, 15, 9, 2, 6]


def run(*command: object) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, (
        f"{command} exited with {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def write_model(path: Path) -> None:
    """One layer of causal attention over an embedding: ids [batch, sequence] to logits."""
    vocab, width, heads = 48, 32, 4
    random = np.random.default_rng(5)

    def weight(name: str, *dims: int) -> onnx.TensorProto:
        values = random.normal(size=dims) * 3 / np.sqrt(dims[0])
        return numpy_helper.from_array(values.astype(np.float32), name)

    weights = [weight("embedding", vocab, width), weight("head", width, vocab)]
    weights += [weight(name, width, width) for name in ("wq", "wk", "wv")]
    nodes = [helper.make_node("Gather", ["embedding", "ids"], ["x"])]
    nodes += [helper.make_node("MatMul", ["x", f"w{name}"], [name]) for name in "qkv"]
    nodes += [
        helper.make_node(
            "Attention",
            ["q", "k", "v"],
            ["mixed"],
            is_causal=1,
            q_num_heads=heads,
            kv_num_heads=heads,
        ),
        helper.make_node("Add", ["x", "mixed"], ["y"]),
        helper.make_node("MatMul", ["y", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "one_layer",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", vocab])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("installed")
    run("cmake", "--preset", "dev")
    run("cmake", "--build", "--preset", "dev")
    run("cmake", "--install", BUILD, "--prefix", prefix, "--component", "library")
    return prefix


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "one_layer.onnx"
    write_model(path)
    return path


def example(installed: Path, folder: Path, *, static: bool) -> Path:
    """The example, configured and built the way its users do."""
    source = shutil.copytree(EXAMPLE, folder / "source")
    build = folder / "build"
    run(
        "cmake",
        *("-S", source, "-B", build, "-G", "Ninja"),
        f"-DCMAKE_PREFIX_PATH={installed}",
        f"-DKVIK_STATIC={'ON' if static else 'OFF'}",
    )
    run("cmake", "--build", build)
    return build / "generate"


@pytest.mark.parametrize("static", [False, True], ids=["shared", "static"])
def test_example_generates_what_python_does(
    installed: Path, model: Path, tmp_path: Path, static: bool
) -> None:
    program = example(installed, tmp_path, static=static)
    engine = kvik.load(model)
    for temperature, seed in ((0.0, 0), (0.8, 7)):
        words = run(program, model, 24, temperature, seed, *PROMPT).split()
        expected = engine.generate(PROMPT, max_new_tokens=24, temperature=temperature, seed=seed)
        assert [int(word) for word in words] == list(expected)
        assert len(words) == 24


def test_example_reports_errors_in_one_line(installed: Path, model: Path, tmp_path: Path) -> None:
    program = example(installed, tmp_path, static=False)
    for arguments in ((model, 4, 0, 0, 48), (tmp_path / "none.onnx", 4, 0, 0, 1)):
        command = [str(part) for part in (program, *arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert done.stderr.endswith(errors[0] + "\n")


def test_shared_library_exports_the_public_interface_alone(installed: Path) -> None:
    library = next(installed.glob("lib*/**/libkvik.so"), None)
    assert library is not None
    symbols = run("nm", "--dynamic", "--defined-only", "--demangle", library).splitlines()
    names = [line.split(maxsplit=2)[2] for line in symbols]
    assert any(name.startswith("kvik::Model::load(") for name in names)
    allowed = ("kvik::", "typeinfo for kvik::", "typeinfo name for kvik::", "vtable for kvik::")
    assert [name for name in names if not name.startswith(allowed)] == []
    inner = ("kvik::runtime", "kvik::ops", "kvik::graph", "kvik::kernels", "kvik::onnx")
    assert [name for name in names if any(layer in name for layer in inner)] == []


def test_pkg_config(installed: Path) -> None:
    folder = next(installed.glob("lib*/**/pkgconfig"))
    flags = run("env", f"PKG_CONFIG_PATH={folder}", "pkg-config", "--cflags", "--libs", "kvik")
    assert "-lkvik" in flags
    include = next(part[2:] for part in flags.split() if part.startswith("-I"))
    assert (Path(include) / "kvik" / "kvik.h").is_file()
