"""What weights and caches in bf16, int8 and int4 do to a trained model's predictions.

    python benchmarks/quality.py demo/gpt.onnx TEXT.txt

Bounds, on trained models: int8 mean KL <= 0.002 and the same top token >= 97.5 %; int4 mean KL
<= 0.035 and >= 91.5 %. Exit status 1 when one is missed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import kvik
from kvik.arguments import CacheType, WeightType
from kvik_export.quality import measure_quality

BOUNDS: dict[tuple[WeightType, CacheType], tuple[float, float]] = {
    ("bf16", "f32"): (0.002, 0.975),
    ("int8", "f32"): (0.002, 0.975),
    ("int4", "f32"): (0.035, 0.915),
    ("f32", "bf16"): (0.002, 0.975),
    ("f32", "int8"): (0.002, 0.975),
    ("int8", "int8"): (0.004, 0.970),  # both, each within its own
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="an .onnx file with a tokenizer")
    parser.add_argument("text", type=Path, help="text that the model was not trained on")
    parser.add_argument("--tokens", type=int, default=8192, help="of the text, at most")
    arguments = parser.parse_args()
    model = kvik.load(arguments.model)
    if model.tokenizer is None:
        sys.exit(f"{arguments.model} has no tokenizer")
    length = min(model.info.context_length or 1024, 1024)
    ids = model.tokenizer.encode(arguments.text.read_text(encoding="utf-8"))[: arguments.tokens]
    windows = [ids[at : at + length] for at in range(0, len(ids) - 1, length)]
    windows = [window for window in windows if len(window) > 1]
    print(f"{arguments.model}: {sum(map(len, windows))} tokens of {arguments.text}\n")
    print("| weights | cache | MB | mean KL | same top | perplexity | in f32 | |")
    print("|---|---|---|---|---|---|---|---|")
    missed = False
    bounds = {(str(weights), str(cache)): bound for (weights, cache), bound in BOUNDS.items()}
    for item in measure_quality(arguments.model, windows, tuple(BOUNDS)):
        good = item.within(*bounds[item.weights, item.cache])
        missed = missed or not good
        print(
            f"| {item.weights} | {item.cache} | {item.packed_bytes / 1e6:.1f} | "
            f"{item.mean_kl:.5f} | {item.same_top:.2%} | {item.perplexity:.4f} | "
            f"{item.perplexity_f32:.4f} | "
            f"{'ok' if good else 'beyond its bounds'} |"
        )
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
