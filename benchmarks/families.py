"""Every family and task on its embedded data: trained, scored, exported, verified, timed.

    python -m benchmarks.families -o runs/families

Writes families.json and families.md: for each run its scores beside their baselines, the seconds
of training, the size of its file, how far Kvik and torch are from onnxruntime, and how long an
answer takes both. A run that is finished is not repeated, and one that was interrupted goes on.
Exit status 1: a score does not beat its baseline, or the engines do not agree.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.latency import Latency, measure
from kvik_export.exporter import export_checkpoint
from kvik_export.verify_plain import KVIK, KVIK_TEXTS, verify_plain
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
HEAD = (
    "model and data", "reached (baseline)", "training, s", "MiB", "error of Kvik", "of torch",
    "an answer", "Kvik, ms", "onnxruntime, ms", "×",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What a run came to. Errors are relative to onnxruntime's largest output."""

    name: str
    title: str
    scores: list[Score]
    training_seconds: float
    file_bytes: int
    kvik_error: float
    torch_error: float
    latency: Latency

    def beaten(self) -> bool:
        """Whether every score is better than its baseline."""
        return all(score.beats_baseline() for score in self.scores)

    def cells(self) -> list[str]:
        took = self.latency
        return [
            self.title,
            "<br>".join(score.describe() for score in self.scores),
            f"{self.training_seconds:.0f}",
            f"{self.file_bytes / 2**20:.1f}",
            f"{self.kvik_error:.0e}",
            f"{self.torch_error:.0e}",
            took.what,
            f"{took.kvik:.2f}",
            f"{took.onnxruntime:.2f}",
            f"{took.ratio:.1f}",
        ]


def train(run: Run, folder: Path, threads: int | None) -> None:
    """In a process of its own; nothing where the run is finished.

    Raises:
        SystemExit: the training failed or was interrupted.
    """
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
    status = subprocess.run(command).returncode
    if status != 0:
        raise SystemExit(
            f"{run.name}: training ended with status {status}; what is done stays in {folder}, and "
            "the same command goes on from there"
        )


def examine(run: Run, folder: Path, threads: int | None) -> Row:
    """Export a trained run, compare the engines on its file, and time them.

    Raises:
        SystemExit: the engines do not agree.
    """
    out = folder / run.name
    scores = [Score(**score) for score in json.loads(scores_path(out).read_text())["scores"]]
    exported = export_checkpoint(out, folder / f"{run.name}.onnx")
    verified = verify_plain(exported.path, checkpoint=out, threads=threads)
    if not verified.ok:
        raise SystemExit(f"{run.name}: the engines do not agree: {verified.checks}")
    errors = {check.what: check.error or 0.0 for check in verified.checks if not check.skipped}
    if KVIK not in errors:
        raise SystemExit(f"{run.name}: Kvik did not run {exported.path}: {verified.checks}")
    return Row(
        name=run.name,
        title=run.title,
        scores=scores,
        training_seconds=load_checkpoint(out)[3].seconds,
        file_bytes=exported.bytes,
        kvik_error=max(errors[KVIK], errors.get(KVIK_TEXTS, 0.0)),
        torch_error=errors["torch"],
        latency=measure(exported.path, threads=threads),
    )


def table(rows: list[Row]) -> str:
    """In Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def record(rows: list[Row]) -> list[dict[str, Any]]:
    return [{**asdict(row), "beats_baselines": row.beaten()} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/families"))
    parser.add_argument("--threads", type=int, help="of torch, and of both engines")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(run.name for run in RUNS)}")
    options = parser.parse_args()
    known = {run.name for run in RUNS}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"there is no {unknown[0]!r}; there are {', '.join(run.name for run in RUNS)}")
    bases = {run.base for run in RUNS if run.name in options.names}
    chosen = [run for run in RUNS if not options.names or run.name in {*options.names, *bases}]
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for run in chosen:
        train(run, options.out, options.threads)
        rows.append(examine(run, options.out, options.threads))
        print(f"| {' | '.join(rows[-1].cells())} |", flush=True)
        # Written after each: what is done stays when the rest is interrupted.
        (options.out / "families.md").write_text(table(rows))
        (options.out / "families.json").write_text(json.dumps(record(rows), indent=2) + "\n")
    print(f"\n{table(rows)}\nin {options.out / 'families.md'}")
    if behind := [row.name for row in rows if not row.beaten()]:
        raise SystemExit(f"no better than the baseline: {', '.join(behind)}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
