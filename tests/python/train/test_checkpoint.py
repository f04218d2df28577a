"""Checkpoints: whole or absent, and loadable for use."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvik_train import load_checkpoint
from kvik_train.atomic import atomic_write
from kvik_train.checkpoint import checkpoint_path, read_checkpoint, save_config
from kvik_train.config import CHANGEABLE, RunConfig, TrainConfig, check_resumable
from kvik_train.errors import TrainError
from kvik_train.tokenizer import load_tokenizer
from kvik_train.trainer import Trainer


@pytest.fixture
def trained(tiny_run: RunConfig, make_trainer: Callable[..., Trainer]) -> Trainer:
    trainer = make_trainer(tiny_run)
    trainer.run(stop_at=2)
    return trainer


def test_load_for_use(trained: Trainer) -> None:
    for path in (trained.folder, str(checkpoint_path(trained.folder))):
        model, config, tokenizer, progress = load_checkpoint(path)
        assert not model.training
        assert config == trained.config
        assert config.family == "gpt"
        assert progress.step == 2
        ids = load_tokenizer(tokenizer).encode("for index").ids
        with torch.no_grad():
            found = model(torch.tensor([ids]))
            expected = trained.model.eval()(torch.tensor([ids]))
        assert torch.equal(found, expected)


def test_config_json_restores_the_config(trained: Trainer) -> None:
    save_config(trained.folder, trained.config)
    values = json.loads((trained.folder / "config.json").read_text())
    assert values["family"] == "gpt"
    assert RunConfig.from_dict(values) == trained.config


def test_atomic_write_replaces_or_leaves(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"old")

    def fail_halfway() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            file.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_bytes() == b"old"
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"  # until the end of the block
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_crash_while_saving_keeps_the_old_checkpoint(
    trained: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = checkpoint_path(trained.folder).read_bytes()

    def cut_short(value: object, file: object) -> None:
        file.write(b"half a checkpoint")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", cut_short)
    with pytest.raises(OSError, match="No space left"):
        trained._save()
    assert checkpoint_path(trained.folder).read_bytes() == before
    assert not list(trained.folder.glob(".*tmp"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"not a checkpoint at all",
        lambda data: b"\x80\x02",
        lambda data: data[:200] + bytes(200) + data[400:],
    ],
)
def test_damaged_file(damage: Callable[[bytes], bytes], trained: Trainer) -> None:
    path = checkpoint_path(trained.folder)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TrainError, match="is not a checkpoint that kvik train wrote") as caught:
        load_checkpoint(trained.folder)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def set_in(values: dict[str, Any], path: str, value: object) -> None:
    """Replace what the dotted path names; None takes it out."""
    *outer, last = path.split(".")
    for name in outer:
        values = values[name]
    if value is None:
        del values[last]
    else:
        values[last] = value


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("config", None, "config is missing; it must be a dict"),
        ("optimizer", [1], "optimizer is list; it must be a dict"),
        ("config.train", None, "the config has no train"),
        ("config.train", 3, "train is int; it must be a mapping"),
        ("config.family", ["gpt"], r"family is \['gpt'\]; it must be a name"),
        ("config.family", "lstm", "unknown model family 'lstm'"),
        ("config.train.steps", "many", "train.steps is 'many'; it must be of type int"),
        ("config.train.steps", 0, "steps is 0; it must be at least 1"),
        ("config.train.dtype", "float8", "train.dtype is 'float8'; it must be of type"),
        ("config.train.novel", 1, "train has unknown novel; was it saved by a newer Kvik"),
        ("config.model.n_head", 2.5, "model.n_head is 2.5; it must be of type int"),
        ("config.model.bias", "yes", "model.bias is 'yes'; it must be of type bool"),
        (
            "config.data.max_bytes",
            "all",
            r"data.max_bytes is 'all'; it must be of type int \| None",
        ),
        ("progress.step", "two", "progress.step is 'two'; it must be of type int"),
    ],
)
def test_a_damaged_setting_is_named(
    place: str, value: object, words: str, trained: Trainer
) -> None:
    path = checkpoint_path(trained.folder)
    values = torch.load(path, weights_only=True)
    set_in(values, place, value)
    torch.save(values, path)
    with pytest.raises(TrainError, match=words) as caught:
        load_checkpoint(trained.folder)
    assert str(caught.value).startswith(f"{path} is damaged: ")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"format": 1, "model": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainError, match="is not a checkpoint that kvik train wrote") as caught:
        load_checkpoint(tmp_path)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_missing_parts(trained: Trainer, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"no checkpoint at .*kvik train --out"):
        load_checkpoint(tmp_path / "nowhere")
    (trained.folder / "tokenizer.json").unlink()
    with pytest.raises(TrainError, match="no tokenizer at"):
        load_checkpoint(trained.folder)
    torch.save({"format": 99}, tmp_path / "new.pt")
    with pytest.raises(TrainError, match="format 99, expected 1"):
        read_checkpoint(tmp_path / "new.pt")


def test_what_a_resumed_run_may_change(tiny_run: RunConfig) -> None:
    allowed = replace(tiny_run.train, steps=40, threads=2, compile=True, eval_interval=3)
    check_resumable(tiny_run, replace(tiny_run, train=allowed))
    for part, change in (
        ("train", {"learning_rate": 0.5}),
        ("train", {"batch_size": 8}),
        ("train", {"seed": 9}),
        ("model", {"n_layer": 3}),
        ("data", {"tokenizer": "bpe"}),
    ):
        (name,) = change
        other = replace(tiny_run, **{part: replace(getattr(tiny_run, part), **change)})
        with pytest.raises(TrainError, match=f"cannot resume: {name} was"):
            check_resumable(tiny_run, other)
    assert set(TrainConfig.__dataclass_fields__) >= CHANGEABLE
