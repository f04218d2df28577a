"""The model: what it may look at, how it starts, and that its options do what they say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from kvik_train.errors import TrainError
from kvik_train.models import build_model, config_from_dict, family_of
from kvik_train.models.gpt import GPT, PRESETS, GPTConfig

TINY = GPTConfig(vocab_size=50, context_length=12, n_layer=3, n_head=4, n_embd=32)


def tiny(**changes: object) -> GPT:
    torch.manual_seed(3)
    return GPT(replace(TINY, **changes)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_causal(norm: str) -> None:
    """Changing token i changes no logits before i, and changes those at i."""
    model = tiny(norm=norm)
    ids = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(1))
    before = model(ids)
    assert before.shape == (2, 12, 50)
    for position in range(12):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 50
        after = model(changed)
        assert torch.equal(after[:, :position], before[:, :position])
        assert (after[:, position] - before[:, position]).abs().max() > 1e-4


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_forward_against_the_equations(norm: str) -> None:
    """The whole forward pass in float64, written out with explicit softmax and loops over heads."""
    model = tiny(norm=norm).double()
    for parameter in model.parameters():  # make biases and gains matter
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    ids = torch.randint(50, (1, 9), generator=torch.Generator().manual_seed(2))
    x = model.token_embedding.weight[ids[0]] + model.position_embedding.weight[:9]
    visible = torch.ones(9, 9, dtype=torch.bool).tril()
    for block in model.blocks:
        inner = block.attention_norm(x) if norm == "pre" else x
        q, k, v = (inner @ block.attention.qkv.weight.T + block.attention.qkv.bias).split(32, -1)
        heads = []
        for h in range(4):
            part = slice(8 * h, 8 * h + 8)
            scores = q[:, part] @ k[:, part].T / math.sqrt(8)
            heads.append(scores.masked_fill(~visible, -math.inf).softmax(-1) @ v[:, part])
        x = x + block.attention.output(torch.cat(heads, -1))
        if norm == "post":
            x = block.attention_norm(x)
        inner = block.mlp_norm(x) if norm == "pre" else x
        x = x + block.mlp.output(F.gelu(block.mlp.input(inner), approximate="tanh"))
        if norm == "post":
            x = block.mlp_norm(x)
    if norm == "pre":
        x = model.final_norm(x)
    expected = x @ model.token_embedding.weight.T
    torch.testing.assert_close(model(ids)[0], expected, rtol=1e-10, atol=1e-10)


def std_tolerance(count: int) -> float:
    """Five standard errors of the sample deviation of `count` normal values, relative."""
    return 5 / math.sqrt(2 * count)


def test_initialisation_has_the_statistics_of_gpt2() -> None:
    config = replace(TINY, vocab_size=500, context_length=200, n_layer=8, n_embd=128)
    torch.manual_seed(0)
    model = GPT(config)
    expected = {"token_embedding.weight": 0.02, "position_embedding.weight": 0.01}
    for i in range(8):
        expected[f"blocks.{i}.attention.qkv.weight"] = 0.02
        expected[f"blocks.{i}.mlp.input.weight"] = 0.02
        # 2 * 8 projections write into the residual stream.
        expected[f"blocks.{i}.attention.output.weight"] = 0.02 / 4
        expected[f"blocks.{i}.mlp.output.weight"] = 0.02 / 4
    parameters = dict(model.named_parameters())
    for name, std in expected.items():
        values = parameters.pop(name)
        tolerance = std_tolerance(values.numel())
        assert values.std().item() == pytest.approx(std, rel=tolerance), name
        assert abs(values.mean().item()) < 5 * std / math.sqrt(values.numel()), name
    for name, values in parameters.items():  # the rest is biases (zero) and gains (one)
        is_gain = name.endswith("norm.weight")
        assert torch.equal(values, torch.full_like(values, float(is_gain))), name


def test_post_norm_residual_projections_are_not_scaled() -> None:
    weight = tiny(norm="post", n_embd=128).blocks[0].mlp.output.weight
    assert weight.std().item() == pytest.approx(0.02, rel=std_tolerance(weight.numel()))


def test_tied_weights_are_one_tensor() -> None:
    tied, untied = tiny(), tiny(tie_weights=False)
    assert tied.head.weight is tied.token_embedding.weight
    assert untied.parameter_count() - tied.parameter_count() == 50 * 32
    tied(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    # A token that is not in the input still learns, through the projection.
    assert tied.token_embedding.weight.grad[7].abs().sum() > 0


def test_options_remove_biases_and_choose_gelu() -> None:
    plain = {name for name, _ in tiny(bias=False, norm_bias=False).named_parameters()}
    assert not any(name.endswith("bias") for name in plain)
    kept = {name for name, _ in tiny(bias=False).named_parameters() if name.endswith("bias")}
    assert kept
    assert all("norm" in name for name in kept)
    ids = torch.arange(12)[None]
    exact, tanh = tiny(gelu="exact")(ids), tiny()(ids)
    assert not torch.equal(exact, tanh)
    torch.testing.assert_close(exact, tanh, rtol=0, atol=1e-3)


def test_dropout_acts_in_training_only() -> None:
    model = tiny(dropout=0.5)
    ids = torch.arange(12)[None]
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


@pytest.mark.parametrize(
    ("name", "millions"),
    [("gpt2", 124.4), ("gpt2-medium", 354.8), ("gpt2-large", 774.0), ("gpt2-xl", 1557.6)],
)
def test_presets_have_the_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = GPT(PRESETS[name])
    assert round(model.parameter_count() / 1e6, 1) == millions


def test_exports_with_dynamic_batch_and_length() -> None:
    model = tiny()
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=12)
    program = torch.export.export(
        model, (torch.zeros(2, 5, dtype=torch.long),), dynamic_shapes=({0: batch, 1: length},)
    )
    ids = torch.randint(50, (3, 11), generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(program.module()(ids), model(ids))


def test_registry_round_trip() -> None:
    config = config_from_dict("gpt", {"vocab_size": 9, "n_layer": 1, "n_head": 1, "n_embd": 4})
    assert family_of(config) == "gpt"
    assert isinstance(build_model(config), GPT)
    with pytest.raises(TrainError, match="unknown model family 'mlp'"):
        config_from_dict("mlp", {})
    with pytest.raises(TrainError, match="model has unknown depth"):
        config_from_dict("gpt", {"depth": 2})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 5}, "n_embd 32 is not a multiple of n_head 5"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"norm": "mid"}, "norm is 'mid'"),
        ({"gelu": "fast"}, "gelu is 'fast'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        replace(TINY, **changes)  # type: ignore[arg-type]
