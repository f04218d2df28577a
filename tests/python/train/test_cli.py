"""The command: what it makes, what it refuses, and how it stops."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kvik_train import load_checkpoint
from kvik_train.checkpoint import checkpoint_path
from kvik_train.data.corpus import NAMED
from kvik_train.presets import RECIPES, find_preset

from .conftest import Finished

Command = Callable[..., Finished]

SMALL = ("--batch-size", "2", "--context", "16", "--eval-windows", "2", "--threads", "1")


@pytest.fixture
def trained(train_command: Command, corpus_file: Path, tmp_path: Path) -> Path:
    """A finished run of three steps."""
    out = tmp_path / "run"
    done = train_command("--data", corpus_file, "--out", out, "--steps", 3, *SMALL)
    assert done.returncode == 0, done.stderr
    return out


def refused(done: Finished) -> str:
    """The message of a command that failed as it should on bad input."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("kvik: error: ")
    return lines[0]


def test_files_of_a_run(trained: Path) -> None:
    names = {
        "checkpoint.pt", "config.json", "data", "log.jsonl", "loss.png", "scores.json",
        "tokenizer.json",
    }  # fmt: skip
    assert {path.name for path in trained.iterdir()} == names
    assert json.loads((trained / "config.json").read_text())["preset"] == "char-tiny"
    torch.load(checkpoint_path(trained), weights_only=True)


def test_resume_and_reuse(train_command: Command, trained: Path) -> None:
    before = checkpoint_path(trained).read_bytes()
    again = refused(train_command("--out", trained, "--steps", 3))
    assert "holds a run at step 3 of 3" in again
    assert "--resume" in again
    assert "--overwrite" in again
    done = train_command("--out", trained, "--resume")
    assert done.returncode == 0
    assert "nothing left to do" in done.stdout
    assert "learning_rate was 0.004" in refused(
        train_command("--out", trained, "--resume", "--steps", 5, "--learning-rate", 0.5)
    )
    assert "of preset char-tiny, not char-small" in refused(
        train_command("--out", trained, "--resume", "--preset", "char-small")
    )
    assert checkpoint_path(trained).read_bytes() == before
    done = train_command("--out", trained, "--resume", "--steps", 5)
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(trained)[3].step == 5


def test_resume_notices_other_tokens(
    train_command: Command, trained: Path, corpus_file: Path
) -> None:
    (trained / "data" / "data.json").unlink()
    corpus_file.write_text(corpus_file.read_text() * 2)
    message = refused(train_command("--out", trained, "--resume", "--steps", 5))
    assert "the corpus has changed" in message


def test_overwrite_checks_before_it_discards(
    train_command: Command, trained: Path, corpus_file: Path
) -> None:
    before = checkpoint_path(trained).read_bytes()
    for wrong in (("--data", "/nowhere"), ("--accumulate", "3"), ("--steps", "0")):
        refused(train_command("--out", trained, "--overwrite", *SMALL, *wrong))
    assert checkpoint_path(trained).read_bytes() == before
    done = train_command(
        "--out", trained, "--overwrite", "--data", corpus_file, "--steps", 1, *SMALL
    )
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(trained)[3].step == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--preset", "char-tinny"), ["did you mean char-tiny?", *RECIPES]),
        (("--data", "shakespear"), ["no corpus at 'shakespear'", *NAMED]),
        (("--device", "tpu"), ["unknown device 'tpu'", "cpu"]),
        (("--dtype", "fp8"), ["dtype is 'fp8'", "bfloat16"]),
        (("--tokenizer", "words"), ["unknown tokenizer 'words'", "char or bpe"]),
        (("--vocab-size", "10"), ["--vocab-size is 10", "257"]),
        (("--learning-rate", "-1"), ["learning_rate is -1.0", "positive"]),
        (("--steps", "many"), ["--steps", "integer"]),
        (("--no-such-option",), ["--no-such-option", "--help"]),
        (("--resume", "--overwrite"), ["give one of them"]),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...], words: list[str], train_command: Command, corpus_file: Path
) -> None:
    message = refused(train_command("--data", corpus_file, *arguments))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        (b"\xff\xfe not UTF-8", (), "is not UTF-8 text"),
        (b"too short", (), "a window takes 129; use more text"),
        (b"text " * 1000, ("--tokenizer", "wordpiece"), "unknown tokenizer 'wordpiece'"),
        (b"text " * 1000, ("--vocab-size", "10"), "--vocab-size is 10"),
    ],
)
def test_a_refusal_comes_before_all_else(
    text: bytes, arguments: tuple[str, ...], words: str, train_command: Command, tmp_path: Path
) -> None:
    """Nothing is printed about work that is not done, and no folder is left behind."""
    (tmp_path / "text").write_bytes(text)
    done = train_command("--data", tmp_path / "text", "--out", tmp_path / "run", *arguments)
    assert words in refused(done)
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


def test_out_is_a_file(train_command: Command, corpus_file: Path) -> None:
    message = refused(train_command("--data", corpus_file, "--out", corpus_file))
    assert "choose another --out" in message


def test_divergence_is_an_error_with_the_checkpoint_kept(
    train_command: Command, corpus_file: Path, tmp_path: Path
) -> None:
    done = train_command(
        "--data", corpus_file, "--out", tmp_path / "run", "--steps", 50, "--warmup", 0,
        "--learning-rate", 1e30, "--checkpoint-interval", 1, *SMALL,
    )  # fmt: skip
    assert done.returncode == 1
    assert "training diverged at step" in done.stderr
    assert "last good checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert load_checkpoint(tmp_path / "run")[3].step >= 1


def test_ctrl_c_saves_and_resume_goes_on(
    corpus_file: Path, tmp_path: Path, command_environment: dict[str, str], train_command: Command
) -> None:
    out = tmp_path / "run"
    arguments = ["--data", str(corpus_file), "--out", str(out), "--steps", "100000", *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-m", "kvik_train", *arguments, "--checkpoint-interval", "100000"],
        env=command_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: '"event": "train"' in read(out / "log.jsonl"), process)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert stderr == ""
    assert "interrupted after step" in stdout
    assert f"kvik train --out {out} --resume" in stdout
    step = load_checkpoint(out)[3].step
    assert 1 <= step < 100_000
    done = train_command("--out", out, "--resume", "--steps", step + 2)
    assert done.returncode == 0, done.stderr
    assert f"from step {step}" in done.stdout


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def test_help_and_errors_do_not_wait_for_torch(command_environment: dict[str, str]) -> None:
    program = "import sys, kvik_train.cli; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], env=command_environment, check=False)
    assert done.returncode == 0


def test_every_preset_has_a_recipe_that_fits_it() -> None:
    for name, recipe in RECIPES.items():
        _, model, found = find_preset(name)
        assert found is recipe
        if hasattr(model, "vocab_size"):
            assert model.vocab_size >= recipe.data.vocab_size
        assert recipe.train.batch_size % recipe.train.accumulate == 0
