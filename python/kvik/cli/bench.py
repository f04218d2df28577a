"""`kvik bench`: how fast, beside onnxruntime and beside what the machine allows."""

from __future__ import annotations

from typing import Annotated

import typer

from kvik.arguments import check_count
from kvik.cli.common import (
    Cache,
    ModelPath,
    Threads,
    Weights,
    check_cache,
    check_model_path,
    check_weights,
)

__all__ = ["bench"]

REPORT_WIDTH = 100


def bench(
    model: ModelPath,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", "-p", help="Length of the prompt.")
    ] = 128,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", "-n", help="Tokens to decode, at least 2.")
    ] = 32,
    rounds: Annotated[int, typer.Option(help="Samples of everything.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the random prompt.")] = 0,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON record instead of tables.")
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Time each operator of kvik instead, in prefill and in decode."
        ),
    ] = False,
    weights: Weights = "f32",
    cache: Cache = "f32",
    threads: Threads = None,
) -> None:
    """Time load, prefill, first token and decode, and peak memory, for kvik and onnxruntime.

    The engines take turns in one run, with the same file, threads and tokens; each turn begins with
    a rest and an untimed prefill. The ceilings that they are held against, memory bandwidth and
    arithmetic, are measured in the same run.
    Exit status 1: the engines chose different tokens.
    """
    from rich.console import Console

    from kvik.bench.measure import Plan, run_benchmark
    from kvik.bench.report import print_report, to_json

    plan = Plan(
        model=check_model_path(model),
        threads=threads,
        weights=check_weights(weights),
        cache=check_cache(cache),
        prompt_tokens=check_count(prompt_tokens, "--prompt-tokens", 1),
        new_tokens=check_count(new_tokens, "--new-tokens", 2),
        rounds=check_count(rounds, "--rounds", 1),
        seed=check_count(seed, "--seed", 0),
    )
    progress = Console(stderr=True)
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, REPORT_WIDTH)  # a file or a pipe has no width of its own
    if profile:
        from kvik.bench.profile import run_profile
        from kvik.bench.profile_report import print_profile, profile_json

        with progress.status("starting") as status:
            profiled = run_profile(plan, status.update)
        if json:
            print(profile_json(profiled))
        else:
            print_profile(profiled, console)
        return
    with progress.status("starting") as status:
        result = run_benchmark(plan, status.update)
    if json:
        print(to_json(result))
    else:
        print_report(result, console)
    if not result.correct:
        raise typer.Exit(1)
