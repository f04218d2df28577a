"""Every family and task on its embedded data: trained, scored, exported, verified.

    python -m benchmarks.families -o runs/families

Writes families.md: for each run its scores beside their baselines, the seconds of training, the
size of its file, and how far torch and onnxruntime are apart. A run that is finished is not
repeated, and one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from kvik_export.exporter import export_checkpoint
from kvik_export.verify_plain import verify_plain
from kvik_train.checkpoint import load_checkpoint
from kvik_train.evaluation.scores import Score, scores_path


@dataclass(frozen=True)
class Run:
    name: str  # of its folder
    title: str
    preset: str = ""
    base: str = ""  # the run that it fine-tunes
    task: str = ""


RUNS = (
    Run("cnn", "CNN, digits", "cnn-tiny"),
    Run("vit", "ViT, digits", "vit-tiny"),
    Run("seq2seq", "GRU encoder-decoder with attention, number words", "seq2seq-tiny"),
    Run("transformer", "Transformer, number words", "transformer-tiny"),
    Run("gpt", "GPT, Python's library", "char-tiny"),
    Run("gpt-lm", "GPT fine-tuned, asyncio", base="gpt", task="lm"),
    Run("gpt-classify", "GPT fine-tuned, module of four lines", base="gpt", task="classify"),
    Run("rnn", "simple RNN, Python's library", "rnn-tiny"),
    Run("gru", "GRU, Python's library", "gru-tiny"),
    Run("lstm", "LSTM, Python's library", "lstm-tiny"),
    Run("bert", "BERT, Python's library", "bert-tiny"),
    Run("bert-classify", "BERT fine-tuned, module of four lines", base="bert", task="classify"),
    Run("bert-tag", "BERT fine-tuned, tags of Python's tokens", base="bert", task="tag"),
    Run("bert-answer", "BERT fine-tuned, questions about functions", base="bert", task="answer"),
)


def train(run: Run, folder: Path, threads: int | None) -> None:
    out = folder / run.name
    if scores_path(out).is_file():
        return
    command = [sys.executable, "-m", "kvik.cli"]
    if run.base:
        command += ["finetune", str(folder / run.base), "--task", run.task]
    else:
        command += ["train", "--preset", run.preset]
    command += ["--out", str(out), "--resume"]
    if threads is not None:
        command += ["--threads", str(threads)]
    subprocess.run(command, check=True)


def row(run: Run, folder: Path) -> str:
    """The line of the table: title, scores, baselines, seconds, MiB, error."""
    out = folder / run.name
    scores = [Score(**score) for score in json.loads(scores_path(out).read_text())["scores"]]
    exported = export_checkpoint(out, folder / f"{run.name}.onnx")
    verified = verify_plain(exported.path, checkpoint=out, engines=())
    assert verified.ok, verified.checks
    progress = load_checkpoint(out)[3]
    cells = [
        run.title,
        "<br>".join(score.describe() for score in scores),
        f"{progress.seconds:.0f}",
        f"{exported.bytes / 2**20:.1f}",
        f"{verified.largest_error:.1g}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/families"))
    parser.add_argument("--threads", type=int, help="of torch, in training")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(run.name for run in RUNS)}")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [run for run in RUNS if run.name in options.names or not options.names]
    rows = []
    for run in chosen:
        train(run, options.out, options.threads)
        rows.append(row(run, options.out))
        print(rows[-1], flush=True)
    head = "| model and data | reached (baseline) | training, s | MiB | onnxruntime, error |"
    table = "\n".join([head, "|---|---|---|---|---|", *rows]) + "\n"
    (options.out / "families.md").write_text(table)


if __name__ == "__main__":
    main()
