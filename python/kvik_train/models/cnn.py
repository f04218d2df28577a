"""A convolutional classifier of images: two stages of convolution and pooling, three linear layers.

LeNet-5 (LeCun et al. 1998) by default, with a plain linear layer as its last one.

Shapes: B images of `channels` x I x I pixels, I = image_size; L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from kvik_train.errors import TrainError
from kvik_train.models.checks import check_choice, check_dropout, check_positive


@dataclass(frozen=True)
class CNNConfig:
    """The architecture; saved with every checkpoint. The defaults are LeNet-5."""

    image_size: int = 32
    channels: int = 1
    kernel_size: int = 5
    padding: int = 0
    n_filter_1: int = 6
    n_filter_2: int = 16
    n_hidden_1: int = 120
    n_hidden_2: int = 84
    activation: Literal["tanh", "relu"] = "tanh"
    pool: Literal["average", "max"] = "average"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_positive(
            self, "image_size", "channels", "kernel_size", "n_filter_1", "n_filter_2", "n_hidden_1",
            "n_hidden_2",
        )  # fmt: skip
        check_choice("activation", self.activation, ("tanh", "relu"))
        check_choice("pool", self.pool, ("average", "max"))
        check_dropout(self.dropout)
        if self.padding < 0 or self.final_size() < 1:
            raise TrainError(
                f"nothing is left of an image of {self.image_size} pixels after two convolutions "
                f"of {self.kernel_size} with padding {self.padding} and two poolings by 2"
            )

    def final_size(self) -> int:
        """Height and width of what the linear layers read."""
        size = self.image_size
        for _ in range(2):
            size = (size + 2 * self.padding - self.kernel_size + 1) // 2
        return size


PRESETS: dict[str, CNNConfig] = {
    "cnn-tiny": CNNConfig(
        image_size=8, kernel_size=3, padding=1, n_filter_1=32, n_filter_2=64, n_hidden_1=128,
        n_hidden_2=64, activation="relu", pool="max", dropout=0.1,
    ),
    "lenet-5": CNNConfig(),
}  # fmt: skip


class CNN(nn.Module):
    def __init__(self, config: CNNConfig, n_label: int) -> None:
        super().__init__()
        self.config = config
        self.convolution_1 = nn.Conv2d(
            config.channels, config.n_filter_1, config.kernel_size, padding=config.padding
        )
        self.convolution_2 = nn.Conv2d(
            config.n_filter_1, config.n_filter_2, config.kernel_size, padding=config.padding
        )
        self.activation = nn.Tanh() if config.activation == "tanh" else nn.ReLU()
        self.pool = nn.AvgPool2d(2) if config.pool == "average" else nn.MaxPool2d(2)
        self.dropout = nn.Dropout(config.dropout)
        features = config.n_filter_2 * config.final_size() ** 2
        self.hidden_1 = nn.Linear(features, config.n_hidden_1)
        self.hidden_2 = nn.Linear(config.n_hidden_1, config.n_hidden_2)
        self.classifier = nn.Linear(config.n_hidden_2, n_label)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, L] of images float32 [B, channels, I, I], normalised as in training."""
        x = self.pool(self.activation(self.convolution_1(image)))
        x = self.pool(self.activation(self.convolution_2(x))).flatten(1)
        x = self.dropout(self.activation(self.hidden_1(x)))
        x = self.dropout(self.activation(self.hidden_2(x)))
        return self.classifier(x)  # type: ignore[no-any-return]
