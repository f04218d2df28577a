"""Every family and task trains, resumes bit for bit, and is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kvik_train.checkpoint import checkpoint_path, load_checkpoint, read_checkpoint
from kvik_train.errors import TrainError
from kvik_train.models import build_model, family_of
from kvik_train.presets import FINE_TUNING, default_preset, find_preset
from kvik_train.run import run_training
from kvik_train.runlog import read_log
from kvik_train.tasks import TASKS, find_task

from .runs import FIRST, MODELS, SECOND, make_config, make_trainer, with_train


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pre-trained runs of a step, to be fine-tuned."""
    folder = tmp_path_factory.mktemp("bases")
    found = {}
    for family, task in (("gpt", "lm"), ("bert", "mlm")):
        config = with_train(make_config(family, task, folder), steps=1)
        make_trainer(config, folder / family).run()
        found[family] = folder / family
    return found


def states(trainer: Any) -> dict[str, torch.Tensor]:
    found = dict(trainer.model.state_dict())
    moments = trainer.optimizer.state_dict()["state"]
    return found | {f"{i} {k}": v for i, values in moments.items() for k, v in values.items()}


@pytest.mark.parametrize(
    ("family", "task", "stage"), [(*pair, 1) for pair in FIRST] + [(*pair, 2) for pair in SECOND]
)
def test_resume_is_bit_for_bit(
    family: str, task: str, stage: int, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases[family] if stage == 2 else None
    config = make_config(family, task, tmp_path, base)
    straight = make_trainer(config, tmp_path / "straight")
    straight.run()
    first = make_trainer(config, tmp_path / "parts")
    first.run(stop_at=6)
    torch.manual_seed(987)
    saved = read_checkpoint(checkpoint_path(first.folder))
    second = make_trainer(config, tmp_path / "parts", saved)
    second.run()
    wanted, found = states(straight), states(second)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    logs = [[(e["event"], e["loss"]) for e in read_log(t.folder / "log.jsonl")]
            for t in (straight, second)]  # fmt: skip
    assert logs[0] == logs[1]

    prepared = find_task(task).load(straight.folder)
    assert prepared is not None
    scores = find_task(task).scores(
        straight.model.eval(), straight.config, straight.folder, prepared
    )
    assert scores
    assert all(score.count > 0 and score.baseline_name in score.describe() for score in scores)
    _, config, tokenizer, progress = load_checkpoint(straight.folder)
    assert (config.task, progress.step) == (task, 12)
    assert (tokenizer is None) == (task == "classify-image")


def test_accumulation_sees_the_same_batch(tmp_path: Path) -> None:
    """Cut in parts, a step has the same rows, masks and shifts."""
    for family, task in (("bert", "mlm"), ("vit", "classify-image"), ("lstm", "lm")):
        config = make_config(family, task, tmp_path)
        whole = make_trainer(config, tmp_path / family).objective.batch(3, 0)
        trainer = make_trainer(with_train(config, accumulate=2), tmp_path / family)
        parts = [trainer.objective.batch(3, part) for part in range(2)]
        for attribute in ("inputs", "targets") if task != "lm" else ("ids", "targets"):
            expected, found = getattr(whole, attribute), [getattr(p, attribute) for p in parts]
            if isinstance(expected, torch.Tensor):
                expected, found = (expected,), [(item,) for item in found]
            for number, tensor in enumerate(expected):
                rows = [row for part in found for row in part[number]]
                for row, other in zip(tensor, rows, strict=True):
                    if row.dim():  # padding depends on what else is in a part
                        shared = min(row.shape[-1], other.shape[-1])
                        row, other = row[..., :shared], other[..., :shared]
                    assert torch.equal(row, other)


def test_carried_state_is_that_of_the_text_before(tmp_path: Path) -> None:
    """A row that goes on where the last window ended is what one long text would have given."""
    trainer = make_trainer(make_config("gru", "lm", tmp_path), tmp_path / "run")
    objective, model = trainer.objective, trainer.model.eval()
    first, second = objective.batch(0, 0), objective.batch(1, 0)
    objective.loss(model, first)
    after = objective.state()
    assert after is not None
    goes_on = [row for row in range(4) if not bool(second.fresh[row])]
    assert goes_on
    for row in goes_on:
        assert int(first.targets[row, -1]) == int(second.ids[row, 0])
        both = torch.cat((first.ids[row], second.ids[row]))[None]
        carried, _ = model(second.ids[row][None], after[:, :, row : row + 1])
        whole = model(both)[:, first.ids.shape[1] :]
        torch.testing.assert_close(carried, whole, rtol=1e-5, atol=1e-6)


def test_fine_tuning_starts_from_the_weights_of_the_run(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    for family, task, name in (
        ("gpt", "classify", "backbone.blocks.0.mlp.input.weight"),
        ("bert", "classify", "pooler.weight"),
        ("bert", "answer", "backbone.token_embedding.weight"),
    ):
        trainer = make_trainer(
            make_config(family, task, tmp_path, bases[family]), tmp_path / f"{family}-{task}"
        )
        base = read_checkpoint(checkpoint_path(bases[family])).model_state
        plain = name if name in base else name.removeprefix("backbone.")
        assert torch.equal(trainer.model.state_dict()[name], base[plain])


def test_a_whole_run_is_scored(tmp_path: Path) -> None:
    config = make_config("cnn", "classify-image", tmp_path)
    outcome = run_training(with_train(config, steps=60, learning_rate=1e-2), tmp_path / "run")
    assert outcome.scores[0].value > outcome.scores[0].baseline
    assert (tmp_path / "run" / "scores.json").is_file()


def test_tables_of_families_and_recipes_agree() -> None:
    for family, task in FINE_TUNING:
        assert (family, task) in SECOND
        assert task in TASKS
    for family in ("gpt", "bert", "transformer", "rnn", "seq2seq", "vit", "cnn"):
        name, config, _ = find_preset(default_preset(family))
        assert name == family == family_of(config)
    with pytest.raises(TrainError, match=r"cannot learn 'tag'; .*; tag is for bert"):
        build_model(MODELS["gpt"], "tag", ("a", "b"))


PAPERS = {
    "bert-base": ("mlm", 110.1), "bert-large": ("mlm", 336.2), "transformer-base": ("", 63.1),
    "transformer-big": ("", 214.3), "vit-base-16": ("", 86.6), "vit-large-16": ("", 304.3),
    "lenet-5": ("", 0.06), "lstm-medium": ("lm", 19.8), "lstm-large": ("lm", 66.0),
}  # fmt: skip


@pytest.mark.parametrize("preset", PAPERS)
def test_presets_have_the_published_sizes(preset: str) -> None:
    """Within 1 %: papers count biases, positions and heads in different ways."""
    _, config, _ = find_preset(preset)
    task, millions = PAPERS[preset]
    labels = [str(i) for i in range(10 if preset == "lenet-5" else 1000)]
    with torch.device("meta"):
        model = build_model(config, task or None, labels)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.03), count
