"""Model families by name. A checkpoint names its family; this table turns the name into code.

A family is one file beside gpt.py (a frozen config, a module, presets) and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from kvik_train.config import from_plain
from kvik_train.errors import TrainError
from kvik_train.models import gpt


@dataclass(frozen=True)
class Family:
    config: type[Any]  # a frozen dataclass
    model: type[nn.Module]  # built from one config
    presets: Mapping[str, Any]


FAMILIES: dict[str, Family] = {
    "gpt": Family(gpt.GPTConfig, gpt.GPT, gpt.PRESETS),
}


def family_of(config: object) -> str:
    """The name of the family that `config` belongs to."""
    for name, family in FAMILIES.items():
        if type(config) is family.config:
            return name
    raise TypeError(f"{type(config).__name__} is the config of no known model family")


def build_model(config: object) -> nn.Module:
    """A freshly initialised model; its weights come from torch's global generator."""
    model: nn.Module = FAMILIES[family_of(config)].model(config)
    return model


def config_from_dict(family: str, values: object) -> Any:
    """The inverse of dataclasses.asdict, with the family's name and the settings checked."""
    if family not in FAMILIES:
        raise TrainError(f"unknown model family {family!r}; this version has {', '.join(FAMILIES)}")
    return from_plain(FAMILIES[family].config, values, "model")
