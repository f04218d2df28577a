"""The benchmark's command line: python -m benchmarks --help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.options import add_names, count, counts, run_and_report, write_json
from benchmarks.peers import PEERS
from benchmarks.plan import MODELS, PRECISIONS, Plan, all_cases, short_cases
from benchmarks.results import Record
from benchmarks.run import Runner
from benchmarks.table import to_markdown

SHORT_PRECISIONS = ("f32", "int8", "int4")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1: an engine chose wrong tokens; 2: a mistake on the command line.

    An interrupted run writes what it has; its exit status is 130.
    """
    plan = parse(arguments)
    runner = Runner(plan, lambda text: print(text, file=sys.stderr, flush=True))
    return run_and_report(runner, lambda: write(runner.record, plan.out))


def parse(arguments: Sequence[str] | None) -> Plan:
    """The plan that the command line asks for; a mistake ends the program."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="kvik and its peers on the same weights, taking turns in one run. Writes "
        "results.json, results.md and pictures.",
        epilog="Without --all: the short form, GPT-2's shape alone, few rounds. Peers come with "
        "pip install 'kvik[peers]'; those that are not installed are named in the table.",
    )
    parser.add_argument("--all", action="store_true", help="every model, precision and case")
    add_names(parser, "--models", MODELS, "gpt2; with --all every model")
    add_names(parser, "--peers", PEERS, "all")
    add_names(parser, "--precisions", PRECISIONS, "f32,int8,int4; with --all bf16 too")
    parser.add_argument(
        "--threads", type=counts, metavar="N[,N...]",
        help="thread counts, the one that most is measured with first (default: 2; with --all 2,1)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=count, help="samples of everything (2; with --all 5)")
    parser.add_argument(
        "--new-tokens", type=count, help="tokens to decode, at least 2 (32; with --all 128)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random prompts")
    parser.add_argument(
        "--work", type=Path, default=Path("build/benchmarks"),
        help="where models are kept: gigabytes (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", type=Path, help="folder for the results (default: WORK/results)"
    )
    found = parser.parse_args(arguments)
    new_tokens = found.new_tokens or (128 if found.all else 32)
    if new_tokens < 2:
        parser.error("--new-tokens must be at least 2")
    threads = found.threads or ((2, 1) if found.all else (2,))
    return Plan(
        models=found.models or (MODELS if found.all else MODELS[:1]),
        peers=found.peers or PEERS,
        precisions=found.precisions or (PRECISIONS if found.all else SHORT_PRECISIONS),
        threads=threads[:1],
        scaling_threads=threads[1:],
        rounds=found.rounds or (5 if found.all else 2),
        cases=all_cases(new_tokens) if found.all else short_cases(new_tokens),
        work=found.work,
        out=found.out or found.work / "results",
        seed=found.seed,
    )


def write(record: Record, folder: Path) -> Path:
    """results.json, results.md and, where matplotlib is installed, pictures. Returns the page."""
    write_json(record, folder / "results.json")
    markdown = to_markdown(record)
    try:
        from benchmarks.plots import draw_all

        pictures = draw_all(record, folder)
    except ImportError as error:
        markdown += f"\nNo pictures: {error}.\n"
    else:
        markdown += "".join(f"\n![{path.stem}]({path.name})\n" for path in pictures)
    page = folder / "results.md"
    page.write_text(markdown)
    return page


if __name__ == "__main__":
    sys.exit(main())
