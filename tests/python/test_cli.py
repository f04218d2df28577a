"""The kvik command, as a user runs it: every subcommand, and every kind of mistake."""

import json
import os
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import onnx
import pytest
from onnx import helper

import kvik


def word(argument):
    return argument if isinstance(argument, bytes) else str(argument)


def run(*arguments, stdin=None, env=None):
    command = [sys.executable, "-m", "kvik.cli", *map(word, arguments)]
    environment = os.environ | {"TERM": "dumb", "COLUMNS": "100"} | (env or {})
    data = stdin if isinstance(stdin, bytes) or stdin is None else stdin.encode()
    return subprocess.run(command, input=data, capture_output=True, env=environment, timeout=300)


def succeed(*arguments, **options):
    done = run(*arguments, **options)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


def fail(*arguments, **options):
    """The one line that a mistake gets."""
    done = run(*arguments, **options)
    error = done.stderr.decode()
    assert done.returncode == 2, error
    assert done.stdout == b""
    assert error.startswith("kvik: error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


# ---- the command itself ------------------------------------------------------------------------


def test_version():
    assert succeed("--version")[0] == f"kvik {kvik.__version__}\n"


def test_help_lists_every_command():
    out, _ = succeed("--help")
    for name in ("generate", "inspect", "bench", "train", "export", "verify"):
        assert f" {name} " in out


@pytest.mark.parametrize("command", ["generate", "inspect", "bench"])
def test_help_of_a_command(command):
    out, _ = succeed(command, "--help")
    assert "MODEL" in out
    assert "default: (one for each CPU)" in out


def test_help_says_what_happens_without_an_option():
    out = " ".join(succeed("generate", "--help", env={"COLUMNS": "200"})[0].split())
    for words in ("default: 128", "(what the file recommends, else 0)", "(the model's own)",
                  "else off", "(another one each time, reported)"):  # fmt: skip
        assert words in out
    out = " ".join(succeed("inspect", "--help", env={"COLUMNS": "200"})[0].split())
    assert "(the one that runs)" in out


@pytest.mark.parametrize(
    "arguments",
    [["generat"], ["generate"], ["generate", "--nonsense"], ["generate", "m", "p", "-n", "many"],
     ["inspect"], ["bench", "a", "b"], ["train", "--steps", "many"], ["export"],
     ["verify", "m", "--steps", "many"], ["demo", "--steps", "0"]],
)  # fmt: skip
def test_usage_errors_are_one_line(arguments):
    error = fail(*arguments)
    assert error.endswith(" --help\n")
    assert "see kvik" in error


def test_the_name_alone_shows_the_commands():
    done = run()
    assert done.returncode == 2
    assert b"generate" in done.stdout
    assert done.stderr == b""


def shell(redirection, *arguments):
    """The command with a stream redirected or closed by the shell."""
    command = shlex.join([sys.executable, "-m", "kvik.cli", *map(str, arguments)])
    return subprocess.run(
        ["sh", "-c", f"{command} {redirection}"], capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["generate", "MODEL", "a", "-n", "3"], ["inspect", "MODEL"],
     ["inspect", "MODEL", "--dump"]],
)  # fmt: skip
def test_a_full_disk_is_one_line(arguments, text_path):
    done = shell(">/dev/full", *[text_path if item == "MODEL" else item for item in arguments])
    message = "kvik: error: can't write the output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, message)


def test_closed_streams(text_path):
    done = shell("<&-", "generate", text_path, "-")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "kvik: error: stdin is closed: there is no prompt to read\n"
    done = shell(">&-", "generate", text_path, "a", "-n", 3)
    assert (done.returncode, done.stdout) == (0, "")
    assert "tokens/s" in done.stderr
    done = shell(">&- 2>&-", "generate", text_path, "a", "-n", 3)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("typer", ["generate", "m", "p"]), ("kvik.cli.generate", ["generate", "m", "p"]),
     ("tokenizers", ["generate", "TEXT", "p"])],
)  # fmt: skip
def test_ctrl_c_while_libraries_are_read(module, arguments, text_path, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name == {module!r} and 'kvik.cli' in sys.modules:\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    arguments = [text_path if item == "TEXT" else item for item in arguments]
    done = run(*arguments, env={"PYTHONPATH": path})
    assert done.returncode == 130
    assert done.stderr.strip() == b""


@pytest.mark.parametrize(
    ("command", "extra"),
    [("train", "train"), ("export", "export"), ("verify", "export"), ("demo", "demo")],
)
def test_missing_packages_name_the_extra(command, extra, tmp_path):
    """As on a machine that has the runtime alone: torch and its kin can't be imported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'onnxscript', 'kvik_export', 'kvik_train'):\n"
        "    sys.modules[name] = None\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    error = fail(command, "x", env={"PYTHONPATH": path})
    assert f"pip install 'kvik[{extra}]'" in error


def test_errors_of_every_command_look_alike(tmp_path):
    assert "no-such-preset" in fail("train", "--preset", "no-such-preset")
    assert "give one of them" in fail("train", "--resume", "--overwrite")
    assert "no checkpoint at" in fail("export", tmp_path / "absent", "-o", tmp_path / "m.onnx")
    assert "absent.onnx" in fail("verify", tmp_path / "absent.onnx")


# ---- generate ----------------------------------------------------------------------------------


def test_generate_prints_what_the_library_returns(text, text_path):
    options = {"max_new_tokens": 20, "temperature": 1.0, "top_k": 40, "seed": 3, "stop_ids": ()}
    expected = text.generate("hello", **options)
    out, err = succeed(
        "generate", text_path, "hello", "-n", 20, "--temperature", 1, "--top-k", 40, "--seed", 3,
        "--no-end", "--threads", 1,
    )  # fmt: skip
    assert out == expected + "\n"
    assert "tokens/s" in err
    assert "seed 3" in err


def test_generate_all_options(text, text_path):
    options = {
        "max_new_tokens": 30, "temperature": 0.9, "top_k": 100, "top_p": 0.95, "min_p": 0.01,
        "repetition_penalty": 1.2, "logit_bias": {7: 2.0, 8: -float("inf")}, "stop": ["\n", "q"],
        "stop_ids": [3, 4], "seed": 11,
    }  # fmt: skip
    expected = text.generate("hello", **options)
    out, err = succeed(
        "generate", text_path, "hello", "-n", 30, "--temperature", 0.9, "--top-k", 100, "--top-p",
        0.95, "--min-p", 0.01, "--repetition-penalty", 1.2, "--logit-bias", "7=2", "--logit-bias",
        "8=-inf", "--stop", "\n", "--stop", "q", "--stop-id", 3, "--stop-id", 4, "--seed", 11,
        "--echo", "--quiet",
    )  # fmt: skip
    assert out == "hello" + expected + "\n"
    assert err == ""


def test_generate_from_stdin(text, text_path):
    expected = text.generate("naïve\n", max_new_tokens=5)
    out, _ = succeed("generate", text_path, "-", "-n", 5, stdin="naïve\n")
    assert out == expected + "\n"


def test_generate_ids(plain, plain_path):
    expected = plain.generate([1, 2, 3], max_new_tokens=4)
    out, _ = succeed("generate", plain_path, "1, 2 3", "--ids", "-n", 4)
    assert [int(item) for item in out.split()] == expected


def test_generate_starts_from_what_the_file_recommends(text_path, tmp_path):
    model = onnx.load(text_path)
    metadata = {item.key: item.value for item in model.metadata_props}
    recommended = json.dumps({"temperature": 1.0, "top_k": 40, "future": "x"})
    helper.set_model_props(model, metadata | {"kvik.generation": recommended})
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    loaded = kvik.load(path)
    assert loaded.generation_defaults == {"temperature": 1.0, "top_k": 40}
    options = {"max_new_tokens": 12, "seed": 5}
    out, _ = succeed("generate", path, "a", "-n", 12, "--seed", 5)
    assert out == loaded.generate("a", temperature=1.0, top_k=40, **options) + "\n"
    out, _ = succeed("generate", path, "a", "-n", 12, "--temperature", 0)
    assert out == loaded.generate("a", **options) + "\n"


def test_generate_survives_a_terminal_without_unicode(text_path):
    succeed("generate", text_path, "é", "-n", 20, "--echo", env={"PYTHONIOENCODING": "ascii"})


def test_generate_ends_when_its_reader_leaves(long_path):
    command = [sys.executable, "-m", "kvik.cli", "generate", str(long_path), "a", "-n", "190000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(1)
        process.stdout.close()
        error = process.stderr.read()
        assert process.wait(timeout=60) == 141
    assert error == b""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "2"], "top_p"),
        (["--top-k", "-1"], "top_k"),
        (["--seed", "-1"], "seed"),
        (["-n", "-1"], "max_new_tokens"),
        (["--threads", "0"], "threads"),
        (["--stop", ""], "empty string"),
        (["--stop-id", "999"], "999"),
        (["--stop-id", "3", "--no-end"], "contradict"),
        (["--logit-bias", "x"], "ID=NUMBER"),
        (["--logit-bias", "999=1"], "999"),
        (["--ids"], "--ids expects numbers"),
        (["--tokenizer", "/nonexistent"], "no tokenizer at"),
    ],
)
def test_generate_mistakes(text_path, options, words):
    assert words in fail("generate", text_path, "hello", *options)


def test_generate_bad_models(tmp_path, plain_path):
    assert "no such file" in fail("generate", tmp_path / "absent.onnx", "x")
    assert "is a folder" in fail("generate", tmp_path, "x")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(plain_path.read_bytes()[:1000])
    fail("generate", broken, "x")
    broken.write_text("not a model")
    fail("generate", broken, "x")
    assert "pass tokenizer=" in fail("generate", plain_path, "x")
    assert "context" in fail("generate", plain_path, " ".join(["1"] * 65), "--ids")


def test_generate_bad_text(text_path):
    assert "surrogate U+DCFF" in fail("generate", text_path, b"\xff\xfe")


def test_generate_bad_stdin(text_path):
    assert "not UTF-8" in fail("generate", text_path, "-", stdin=b"\xff\xfe")
    assert "empty" in fail("generate", text_path, "-", stdin=b"")


def test_an_impossible_isa_is_one_line(plain_path):
    error = fail("generate", plain_path, "1", "--ids", env={"KVIK_ISA": "avx9000"})
    assert "avx9000" in error
    assert "reference" in error


# ---- inspect -----------------------------------------------------------------------------------


def test_inspect(text_path, text):
    out, _ = succeed("inspect", text_path)
    assert "input_ids: int64 [batch, sequence]" in out
    assert "logits: float32 [batch, sequence, 258]" in out
    assert f"{text.info.parameters:,} parameters" in out
    assert "LayerNormalization" in out
    assert "incremental: proved" in out
    for line in text.explain().splitlines():
        assert line in out
    assert "<|endoftext|>" not in out  # the tokenizer's text stays inside


def test_inspect_json(plain_path, plain):
    out, _ = succeed("inspect", plain_path, "--json")
    record = json.loads(out)
    assert record["parameters"] == plain.info.parameters
    assert record["ops_before"] == dict(plain.info.ops_before)
    assert record["explain"] == plain.explain().splitlines()
    assert record["inputs"][0]["shape"] == ["batch", "sequence"]


def test_inspect_dump(plain_path):
    out, _ = succeed("inspect", plain_path, "--dump")
    assert "RowAttention" in out
    out, _ = succeed("inspect", plain_path, "--dump", "--stage", "imported")
    assert "Attention(" in out
    assert "RowAttention" not in out


def test_inspect_draws_svg(plain_path, tmp_path):
    picture = tmp_path / "graph.svg"
    out, _ = succeed("inspect", plain_path, "--graph", picture)
    assert str(picture) in out
    texts = [item.text for item in ElementTree.parse(picture).iter() if item.text]
    assert {"RowAttention", "input_ids", "logits", "× 2"} <= set(texts)


def test_inspect_draws_png(plain_path, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "graph.png"
    _, err = succeed("inspect", plain_path, "--graph", picture, "--stage", "imported")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert err == ""


def test_inspect_png_without_matplotlib(plain_path, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['matplotlib'] = None\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    arguments = ("inspect", plain_path, "--graph", tmp_path / "graph.png")
    assert "pip install matplotlib" in fail(*arguments, env={"PYTHONPATH": path})


def test_inspect_a_graph_that_is_no_language_model(session_path):
    out, _ = succeed("inspect", session_path)
    assert "x: tensor(float) ['rows', 3]" in out
    assert "no language model" in out


def test_inspect_mistakes(plain_path, tmp_path, session_path):
    assert ".svg or .png" in fail("inspect", plain_path, "--graph", "graph.jpg")
    assert "no folder" in fail("inspect", plain_path, "--graph", tmp_path / "a" / "b.svg")
    assert "no such file" in fail("inspect", tmp_path / "absent.onnx")
    fail("inspect", session_path, "--dump")


# ---- bench -------------------------------------------------------------------------------------

QUICK = ("--prompt-tokens", 8, "--new-tokens", 4, "--rounds", 2, "--threads", 2)


def test_bench_json(plain_path):
    pytest.importorskip("onnxruntime")
    out, _ = succeed("bench", plain_path, *QUICK, "--json")
    record = json.loads(out)
    assert record["correct"] is True
    assert record["absent"] == []
    assert record["parity"][0]["tokens"] == 4
    assert record["parity"][0]["max_logit_error"] < 1e-4
    assert [engine["name"] for engine in record["engines"]] == ["kvik", "onnxruntime"]
    for engine in record["engines"]:
        for samples in ("prefill_tokens_per_second", "first_token_seconds",
                        "decode_tokens_per_second", "load_seconds"):  # fmt: skip
            assert len(engine[samples]) == 2
            assert min(engine[samples]) > 0
        assert engine["peak_bytes"] > engine["base_bytes"] > 0
    line = record["roofline"]
    assert line["read_bytes_per_second"] > 1e8
    assert line["flops_per_second"] > 1e8
    assert line["bytes_per_token"] >= record["packed_bytes"]
    assert 0 < line["decode_share"] < 1.5
    assert record["machine"]["cpu"]
    assert record["isa"] in record["machine"]["isas"]


def test_bench_report(plain_path):
    pytest.importorskip("onnxruntime")
    out, _ = succeed("bench", plain_path, *QUICK)
    for words in ("load, ms", "prefill, tokens/s", "first token, ms", "decode, tokens/s",
                  "peak memory", "GB/s", "GFLOP/s", "the same 4 greedy tokens as onnxruntime",
                  "keys and values cached", "the whole sequence for each token"):  # fmt: skip
        assert words in out


def test_bench_names_an_absent_peer(plain_path, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['onnxruntime'] = None\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    out, _ = succeed("bench", plain_path, *QUICK, env={"PYTHONPATH": path})
    assert "onnxruntime: absent, not installed (pip install onnxruntime)" in out


def test_bench_profile_json(plain_path):
    out, _ = succeed("bench", plain_path, *QUICK, "--profile", "--json")
    record = json.loads(out)
    prefill, decode = record["phases"]
    assert (prefill["name"], prefill["tokens"], prefill["calls"]) == ("prefill", 16, 2)
    assert (decode["name"], decode["tokens"], decode["calls"]) == ("decode", 6, 6)
    for phase in record["phases"]:
        assert 0 <= phase["overhead_seconds"] < phase["seconds"]
        attention = next(op for op in phase["ops"] if op["op"] == "kvik.RowAttention")
        assert attention["nodes"] == 2
        assert attention["calls"] == 2 * phase["calls"]
        assert 0 < attention["least_seconds"] < attention["seconds"]
    assert record["ceilings"]["read_bytes_per_second"] > 1e8


def test_bench_profile_report(plain_path):
    out, _ = succeed("bench", plain_path, *QUICK, "--profile", "--weights", "int8")
    for words in ("prefill: 8 tokens a call", "decode: 1 tokens a call", "GB/s", "GOP/s",
                  "of ceiling", "kvik.RowAttention", "between operators"):  # fmt: skip
        assert words in out


def test_bench_mistakes(plain_path, tmp_path):
    assert "more than the context of 64" in fail("bench", plain_path)
    assert "--new-tokens must be at least 2" in fail("bench", plain_path, "-n", 1)
    assert "--rounds must be at least 1" in fail("bench", plain_path, "--rounds", 0)
    assert "more than the context of 64" in fail("bench", plain_path, "--profile")
    assert "no such file" in fail("bench", tmp_path / "absent.onnx")
