"""The rounds: kvik and one peer at a time take turns, each in a process of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.check import check_tokens
from benchmarks.client import Client, EngineError
from benchmarks.peers import installed_version, peer
from benchmarks.plan import CONTEXT, Case, Plan
from benchmarks.results import CaseSamples, Entry, Record, Sample, find, roofline_key

Progress = Callable[[str], None]
# (engine, threads) -> a context manager with ask(); tests put another in its place.
Open = Callable[[str, int], Client]

FEW_TOKENS = 6  # of an engine that recomputes everything for each


@dataclass(frozen=True)
class Prepared:
    """What prepare() answered for an engine, a model and a precision."""

    path: str
    bytes: int


class Runner:
    """One run of a plan."""

    def __init__(self, plan: Plan, progress: Progress, open_client: Open | None = None) -> None:
        self._plan = plan
        self._progress = progress
        self._open = open_client or self._open_worker
        self._prepared: dict[tuple[str, str, str], Prepared] = {}
        self.record = Record(describe(), asdict(plan), commit())

    def run(self) -> Record:
        for model in self._plan.models:
            for precision in self._plan.precisions:
                for threads in self._plan.threads:
                    self._measure(model, precision, threads, self._plan.cases)
            others = [n for n in self._plan.scaling_threads if n not in self._plan.threads]
            for threads in others:
                for precision in self._plan.precisions:
                    self._measure(model, precision, threads, self._plan.cases[:1])
        for model in self._plan.models:
            for threads in {*self._plan.threads, *self._plan.scaling_threads}:
                check_tokens(self.record.entries, model, threads, self._gap)
        return self.record

    # ---- one model, one precision, one thread count --------------------------------------------

    def _measure(self, model: str, precision: str, threads: int, cases: Sequence[Case]) -> None:
        ours = self._new_entry("kvik", model, precision, threads)
        self.record.entries.append(ours)
        peers = [
            self._new_entry(name, model, precision, threads)
            for name in self._plan.peers
            if precision in peer(name).precisions
        ]
        self.record.entries += peers
        try:
            for entry in peers:
                if entry.status == "ok":
                    self._take_turns(ours, entry, cases)
            if not any(found.samples for found in ours.cases):  # no peer to take turns with
                self._take_turns(ours, None, cases)
        except EngineError as error:  # kvik itself: nothing to compare with
            ours.status, ours.reason = error.status, error.reason

    def _new_entry(self, name: str, model: str, precision: str, threads: int) -> Entry:
        engine = peer(name)
        entry = Entry(model, name, precision, threads, setting=engine.setting)
        found = installed_version(engine)
        if found is None:
            entry.status = "absent"
            entry.reason = f"not installed (pip install {engine.distribution})"
        entry.version = found or ""
        return entry

    def _note_ceilings(self, entry: Entry, client: Client, case: Case) -> None:
        """Measured by kvik's process each time it is loaded; the highest of the run count."""
        self._say(entry, "the machine's ceilings")
        entry.isa = client.ask("isa")
        position = case.prompt_tokens + case.new_tokens / 2
        line = client.ask("roofline", mean_position=position)
        key = roofline_key(entry.model, entry.precision, entry.threads)
        known = self.record.rooflines.setdefault(key, line)
        for name, value in line.items():
            known[name] = max(known[name], value)

    def _take_turns(self, ours: Entry, entry: Entry | None, cases: Sequence[Case]) -> None:
        """Rounds of kvik, peer, kvik, peer for every case; of kvik alone without a peer."""
        with self._loaded(ours) as mine:
            self._note_ceilings(ours, mine, cases[0])
            if entry is None:
                self._cases(ours, mine, None, None, cases)
                return
            try:
                with self._loaded(entry) as theirs:
                    self._cases(ours, mine, entry, theirs, cases)
            except EngineError as error:
                entry.status, entry.reason = error.status, error.reason

    def _cases(
        self,
        ours: Entry,
        mine: Client,
        entry: Entry | None,
        theirs: Client | None,
        cases: Sequence[Case],
    ) -> None:
        for case in cases:
            found = CaseSamples(case)
            own = ours.case(case.name)
            if own is None:
                own = CaseSamples(case)
                ours.cases.append(own)
            if entry is not None:
                entry.cases.append(found)
            self._say(entry or ours, case.name)
            try:
                self._rounds(case, mine, theirs, found, ours, entry)
            except EngineError as error:
                # A case that an engine does not do leaves the others; a dead engine does not.
                found.reason = error.reason
                if error.status not in ("unsupported", "failed"):
                    raise
            own.samples += found.kvik if entry is not None else found.samples

    def _rounds(
        self,
        case: Case,
        mine: Client,
        theirs: Client | None,
        found: CaseSamples,
        ours: Entry,
        entry: Entry | None,
    ) -> None:
        prompts = self._prompts(case, ours.model)
        for round_index in range(self._plan.rounds + 1):
            for client, target in ((mine, ours), (theirs, entry)):
                if client is None or target is None:
                    continue
                tokens = case.new_tokens if round_index else min(case.new_tokens, 2)
                sample = self._generate(client, target, case, prompts, tokens)
                if round_index == 0:
                    continue  # the warm-up
                into = found.kvik if target is ours and entry is not None else found.samples
                into.append(sample)
        for client, target in ((mine, ours), (theirs, entry)):
            if client is not None and target is not None and not target.peak_bytes:
                target.peak_bytes = client.ask("peak")

    def _generate(
        self, client: Client, entry: Entry, case: Case, prompts: list[list[int]], tokens: int
    ) -> Sample:
        recomputes = peer(entry.engine).recomputes
        if recomputes and case.batch > 1:
            raise EngineError("unsupported", "recomputes: not measured in batches")
        asked = min(tokens, FEW_TOKENS) if recomputes else tokens
        time.sleep(self._plan.rest_seconds)
        made = client.ask("generate", prompts=prompts, new_tokens=asked)
        found = made["tokens"]
        if [len(one) for one in found] != [asked] * case.batch:
            raise EngineError("failed", f"asked for {asked} tokens, gave {list(map(len, found))}")
        if case is self._plan.cases[0] and asked > len(entry.tokens):
            entry.tokens = found[0]
        first, seconds = made["first_seconds"], made["seconds"]
        if asked < tokens and asked > 1:  # as if it had gone on at this rate
            seconds = first + (seconds - first) * (tokens - 1) / (asked - 1)
        return Sample(first, seconds)

    def _prompts(self, case: Case, model: str) -> list[list[int]]:
        rng = np.random.default_rng(self._plan.seed)
        high = 49_000  # in every model's vocabulary
        found: list[list[int]] = rng.integers(3, high, (case.batch, case.prompt_tokens)).tolist()
        return found

    # ---- processes -----------------------------------------------------------------------------

    @contextmanager
    def _loaded(self, entry: Entry) -> Iterator[Client]:
        prepared = self._prepare(entry)
        entry.disk_bytes = prepared.bytes
        self._say(entry, "loading")
        with self._open(entry.engine, entry.threads) as client:
            answer = client.ask(
                "load",
                path=prepared.path,
                precision=entry.precision,
                threads=entry.threads,
                positions=CONTEXT,
            )
            entry.load_seconds.append(answer["seconds"])
            yield client

    def _prepare(self, entry: Entry) -> Prepared:
        """In a process that ends: conversions take memory and leave threads."""
        key = (entry.engine, entry.model, entry.precision)
        if key in self._prepared:
            return self._prepared[key]
        self._say(entry, "preparing the model")
        with self._open(entry.engine, entry.threads) as client:
            answer = client.ask(
                "prepare",
                work=str(self._plan.work.resolve()),
                model=entry.model,
                precision=entry.precision,
            )
        self._prepared[key] = Prepared(answer["path"], answer["bytes"])
        return self._prepared[key]

    def _open_worker(self, engine: str, threads: int) -> Client:
        return Client(
            engine,
            log=self._plan.out / "logs" / f"{engine}.log",
            threads=threads,
            timeout_seconds=self._plan.timeout_seconds,
        )

    def _gap(self, model: str, ids: list[int], first: int, second: int) -> float | None:
        """By onnxruntime on the plain export: the logit of `first` above that of `second`."""
        entry = find(self.record.entries, model, "onnxruntime", "f32", self._plan.threads[0])
        if entry is None or entry.status != "ok":
            return None
        prompt = self._prompts(self._plan.cases[0], model)[0]
        try:
            with self._loaded(entry) as client:
                gap: float = client.ask("gap", ids=prompt + ids, first=first, second=second)
                return gap
        except EngineError:
            return None

    def _say(self, entry: Entry, what: str) -> None:
        threads = f"{entry.threads} thread{'s' if entry.threads > 1 else ''}"
        self._progress(f"{entry.model} {entry.precision} {threads}: {entry.engine}: {what}")


def describe() -> dict[str, Any]:
    """The machine, with the instruction sets that matter to engines."""
    from kvik.bench.machine import describe_machine

    machine = asdict(describe_machine())
    info = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("flags"):
                flags = set(line.split())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return machine | {"flags": [flag for flag in wanted if flag in flags]}


def commit() -> str:
    """Of this working tree, "-dirty" where files differ; empty outside one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
