"""The benchmark's command line: python -m benchmarks.encoders --help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.encoders.engines import PEERS
from benchmarks.encoders.plan import CASES, MODELS, PRECISIONS, Plan
from benchmarks.encoders.results import Record
from benchmarks.encoders.run import Runner
from benchmarks.encoders.table import to_markdown
from benchmarks.options import add_names, count, counts, run_and_report, write_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1: outputs in f32 are wrong; 2: a mistake on the command line.

    An interrupted run writes what it has; its exit status is 130.
    """
    plan = parse(arguments)
    runner = Runner(plan, lambda text: print(text, file=sys.stderr, flush=True))
    return run_and_report(runner, lambda: write(runner.record, plan.out))


def parse(arguments: Sequence[str] | None) -> Plan:
    """The plan that the command line asks for; a mistake ends the program."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.encoders",
        description="kvik and its peers on BERT-base, ViT-B/16 and the base Transformer, taking "
        "turns in one run. Writes encoders.json and encoders.md.",
        epilog="Peers come with pip install 'kvik[peers]'; those that are not installed are named "
        "in the table. The first run exports and converts the models: minutes, and gigabytes.",
    )
    add_names(parser, "--models", MODELS, "all")
    add_names(parser, "--peers", PEERS, "all")
    add_names(parser, "--precisions", PRECISIONS, "all")
    parser.add_argument(
        "--threads", type=counts, metavar="N[,N...]", default=(2,), help="thread counts (2)"
    )
    parser.add_argument("--rounds", type=count, default=5, help="samples of everything (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs")
    parser.add_argument(
        "--work", type=Path, default=Path("build/benchmarks/encoders"),
        help="where models are kept (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", type=Path, help="folder for the results (default: WORK/results)"
    )
    found = parser.parse_args(arguments)
    models = found.models or MODELS
    return Plan(
        models=models,
        peers=found.peers or PEERS,
        precisions=found.precisions or PRECISIONS,
        threads=found.threads,
        rounds=found.rounds,
        cases=tuple(case for model in models for case in CASES[model]),
        work=found.work,
        out=found.out or found.work / "results",
        seed=found.seed,
    )


def write(record: Record, folder: Path) -> Path:
    """encoders.json and encoders.md. Returns the page."""
    write_json(record, folder / "encoders.json")
    page = folder / "encoders.md"
    page.write_text(to_markdown(record))
    return page


if __name__ == "__main__":
    sys.exit(main())
