"""Convolutions, pools and Resize in small networks and alone: torch = onnxruntime = kvik."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kvik import _core
from parity.exported import assert_three_agree, export

WORKER = Path(__file__).with_name("session_worker.py")


def seeded(module: nn.Module) -> nn.Module:
    """The module for inference, with statistics of batches that are not 0 and 1."""
    generator = torch.Generator().manual_seed(4)
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.uniform_(0.2, 1.5, generator=generator)
    return module.eval()


class ResidualNet(nn.Module):
    """Strided, depthwise, pointwise and grouped convolutions, norms, pools, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        )  # fmt: skip
        self.block = nn.Sequential(
            nn.Conv2d(24, 48, 1), nn.Hardswish(), nn.Conv2d(48, 48, 3, padding=1, groups=48),
            nn.SiLU(), nn.Conv2d(48, 24, 3, padding=2, dilation=2, groups=4), nn.GroupNorm(4, 24),
        )  # fmt: skip
        self.head = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                  nn.Linear(24, 10))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.block(x))


class Decoder(nn.Module):
    """What a VAE makes images with: nearest upsampling, convolutions, group norms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.layers = nn.Sequential(
            nn.Conv2d(4, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.SiLU(),
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(32, 32, 3, padding=1),
            nn.GroupNorm(8, 32), nn.SiLU(), nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(32, 3, 3, padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class Generator(nn.Module):
    """DCGAN's generator: transposed convolutions and batch norms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(16, 32, 4, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1), nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(8, 8, 5, 3, 2, groups=8, dilation=2), nn.ConvTranspose2d(8, 3, 2, 2),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class Waves(nn.Module):
    """One dimension, causal and dilated, and back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(8, 8, 3, dilation=2**level) for level in range(4)
        )
        self.up = nn.ConvTranspose1d(8, 4, 8, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for level, convolution in enumerate(self.convolutions):
            x = x + torch.tanh(convolution(F.pad(x, (2 ** (level + 1), 0))))
        return self.up(F.max_pool1d(x, 3, 2, 1))


class Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.layers = nn.Sequential(
            nn.Conv3d(2, 6, 3, padding=1, stride=(1, 2, 1)), nn.InstanceNorm3d(6, affine=True),
            nn.MaxPool3d(2), nn.ConvTranspose3d(6, 3, 3, 2, 1, output_padding=1), nn.AvgPool3d(2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Resized(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            F.interpolate(x, scale_factor=2.0, mode="nearest"),
            F.interpolate(x, size=(7, 20), mode="nearest"),
            F.interpolate(x, scale_factor=1.5, mode="bilinear"),
            F.interpolate(x, size=(21, 5), mode="bilinear", align_corners=True),
            F.interpolate(x, size=(23, 30), mode="bicubic"),
        )


NETWORKS = {
    "residual": (ResidualNet, (2, 3, 45, 38), {0: "batch", 2: "height", 3: "width"}),
    "decoder": (Decoder, (1, 4, 9, 7), {0: "batch", 2: "height", 3: "width"}),
    "generator": (Generator, (2, 16, 1, 1), {0: "batch", 2: "height", 3: "width"}),
    "waves": (Waves, (2, 8, 50), {0: "batch", 2: "length"}),
    "volumes": (Volumes, (1, 2, 8, 10, 6), {0: "batch"}),
    "resized": (Resized, (2, 3, 12, 11), {0: "batch"}),
}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The file of a network, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("networks")
    made = {}

    def make(name: str) -> tuple[nn.Module, Path]:
        if name not in made:
            kind, shape, axes = NETWORKS[name]
            module = seeded(kind())
            made[name] = (
                module,
                export(module, [torch.randn(shape)], folder / f"{name}.onnx", axes),
            )
        return made[name]

    return make


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, network):
    module, path = network(name)
    _, shape, axes = NETWORKS[name]
    assert_three_agree(module, path, [torch.randn(shape)])
    other = tuple(size + 1 if axis in axes else size for axis, size in enumerate(shape))
    assert_three_agree(module, path, [torch.randn(other)])


def test_a_network_of_the_new_exporter(tmp_path):
    module = seeded(ResidualNet())
    path = export(module, [torch.randn(2, 3, 45, 38)], tmp_path / "m.onnx", {0: "b"}, dynamo=True)
    assert_three_agree(module, path, [torch.randn(3, 3, 45, 38)])


@pytest.mark.parametrize("isa", _core.available_isas())
def test_same_bits(isa, network, tmp_path):
    """Whatever the threads and the batch, for each instruction set, in a process of its own."""
    jobs = []
    for name in NETWORKS:
        _, path = network(name)
        (x,) = onnx.load(path).graph.input
        _, shape, _ = NETWORKS[name]
        jobs.append({"path": str(path), "input": x.name, "shape": [3, *shape[1:]]})
    done = subprocess.run(
        [sys.executable, WORKER, json.dumps(jobs)], env={**os.environ, "KVIK_ISA": isa},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(jobs)
    for result in results:
        assert result["isa"] == isa, "KVIK_ISA did not choose the kernels"
        assert not result["different"], f"{result['path']}: {result['different']}"


CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": (1, 5), "padding": (0, 2)},
    {"kernel_size": 3, "groups": 2, "padding": "same"},
    {"kernel_size": 4, "dilation": (1, 3), "padding": 5},
    {"kernel_size": 3, "groups": 8, "bias": False},
    {"kernel_size": 2, "stride": (3, 1), "padding": 1},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolutions(options, tmp_path):
    torch.manual_seed(10)
    module = nn.Conv2d(8, 16, **options).eval()
    path = export(module, [torch.randn(1, 8, 14, 13)], tmp_path / "m.onnx", {0: "batch"})
    for batch in (1, 3):
        assert_three_agree(module, path, [torch.randn(batch, 8, 14, 13)])


TRANSPOSED = [
    {"kernel_size": 3},
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": 2, "stride": 4, "output_padding": 3},
    {"kernel_size": 3, "stride": 2, "dilation": 2},
    {"kernel_size": (5, 2), "stride": (3, 2), "padding": (2, 0), "groups": 4},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 8},
    {"kernel_size": 4, "stride": 2, "dilation": 3, "bias": False},
]


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_transposed_convolutions(options, tmp_path):
    torch.manual_seed(11)
    module = nn.ConvTranspose2d(8, 8, **options).eval()
    path = export(module, [torch.randn(1, 8, 6, 7)], tmp_path / "m.onnx", {0: "batch"})
    for batch in (1, 3):
        assert_three_agree(module, path, [torch.randn(batch, 8, 6, 7)])


class Pools(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maximum, indices = F.max_pool2d(x, 3, 2, 1, return_indices=True)
        return (
            maximum, indices,
            F.max_pool2d(x, (2, 3), 2, ceil_mode=True), F.max_pool2d(x, 3, 1, 1, dilation=(1, 2)),
            F.avg_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
            F.avg_pool2d(x, (4, 3), (3, 2), (2, 1), ceil_mode=True),
            F.lp_pool2d(x.abs(), 2.0, 3, 2), F.adaptive_avg_pool2d(x, 1),
            F.adaptive_max_pool2d(x, 1), F.local_response_norm(x, 3),
        )  # fmt: skip


def test_pools(tmp_path):
    module = Pools().eval()
    path = export(module, [torch.randn(2, 6, 13, 14)], tmp_path / "m.onnx", {0: "batch"})
    for batch in (2, 1):
        assert_three_agree(module, path, [torch.randn(batch, 6, 13, 14)])


def test_grid_samples(tmp_path):
    class Sampled(nn.Module):
        def forward(self, x: Tensor, grid: Tensor) -> tuple[Tensor, ...]:
            # Beyond the borders torch and ONNX differ in what a cubic reads: there zeros alone.
            return tuple(
                F.grid_sample(x, grid, mode, padding, align)
                for mode in ("bilinear", "nearest", "bicubic")
                for padding in ("zeros", "border", "reflection")
                for align in (False, True)
                if mode != "bicubic" or padding == "zeros"
            )

    torch.manual_seed(12)
    inputs = [torch.randn(2, 3, 7, 6), 3 * torch.rand(2, 5, 4, 2) - 1.5]
    path = export(Sampled(), inputs, tmp_path / "m.onnx", {0: "batch"})
    assert_three_agree(Sampled(), path, inputs)
