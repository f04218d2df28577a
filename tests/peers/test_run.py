"""The rounds with engines that are played: turns, crashes, absences, cases that are not done."""

import json
import signal
import sys
from typing import ClassVar

import pytest
from benchmarks import rounds as rounds_module
from benchmarks.client import Client, EngineError
from benchmarks.entries import find
from benchmarks.peers import PEERS, installed_version, peer
from benchmarks.peers.base import Peer, UnsupportedCaseError
from benchmarks.plan import MODELS, Case, Plan
from benchmarks.run import FEW_TOKENS, Runner
from benchmarks.table import to_markdown
from benchmarks.worker import Worker, serve


class Played:
    """Stands for a worker: every token takes a hundredth of a second, kvik half of it."""

    log: ClassVar = []  # (engine, command) of all

    def __init__(self, engine, threads, fault=None):
        self.engine, self.fault = engine, fault

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, do, **arguments):
        Played.log.append((self.engine, do))
        if self.fault is not None and self.fault[0] == do:
            raise EngineError(*self.fault[1])
        if do == "prepare":
            return {"path": "model", "bytes": 1_000_000}
        if do == "load":
            return {"seconds": 0.5}
        if do == "generate":
            if len(arguments["prompts"]) > 1 and self.engine == "openvino":
                raise EngineError("unsupported", "one sequence at a time")
            unit = 0.005 if self.engine == "kvik" else 0.01
            count = arguments["new_tokens"]
            tokens = [list(range(100, 100 + count)) for _ in arguments["prompts"]]
            return {"tokens": tokens, "first_seconds": 10 * unit, "seconds": (9 + count) * unit}
        if do == "roofline":
            return {"decode_tokens_per_second": 400.0, "prefill_tokens_per_second": 9000.0}
        return {"isa": "avx2", "peak": 1 << 20, "gap": 0.0}[do]


CASES = (Case("decode", 1, 16, 21), Case("batch 8", 8, 16, 3))


def measure(monkeypatch, tmp_path, peers, faults=None, absent=(), **options):
    Played.log = []
    monkeypatch.setattr(
        rounds_module,
        "installed_version",
        lambda engine: None if engine.name in absent else "1.0",
    )
    plan = Plan(
        models=("gpt2",), peers=peers, precisions=("f32",), threads=(2,), rounds=2, cases=CASES,
        work=tmp_path, out=tmp_path, rest_seconds=0.0, **options,
    )  # fmt: skip

    def opened(engine, threads):
        return Played(engine, threads, (faults or {}).get(engine))

    runner = Runner(plan, lambda text: None, opened)
    runner.run()
    return runner.record


def entry_of(record, engine):
    found = find(record.entries, "gpt2", engine, "f32", 2)
    assert found is not None
    return found


def test_engines_take_turns(monkeypatch, tmp_path):
    record = measure(monkeypatch, tmp_path, ("ctranslate2",))
    turns = [engine for engine, do in Played.log if do == "generate"]
    # Two rounds of two cases, each turn a warm-up and what counts.
    assert turns == ["kvik", "kvik", "ctranslate2", "ctranslate2"] * 4
    entry = entry_of(record, "ctranslate2")
    assert entry.status == "ok"
    assert [len(case.samples) for case in entry.cases] == [2, 2]
    assert [len(case.kvik) for case in entry.cases] == [2, 2]
    assert entry_of(record, "kvik").isa == "avx2"
    table = to_markdown(record)
    assert "| ctranslate2 | f32 | 100 | 160 | 2.00 | 100 | 2.00 | 25% | 0.50 | 1 | 1 |" in table


def test_an_absent_peer_is_named(monkeypatch, tmp_path):
    record = measure(monkeypatch, tmp_path, ("openvino", "ctranslate2"), absent=("openvino",))
    assert entry_of(record, "openvino").status == "absent"
    assert "openvino (f32): absent: not installed (pip install openvino)" in to_markdown(record)
    assert not any(engine == "openvino" for engine, _ in Played.log)


@pytest.mark.parametrize("when", ["prepare", "load", "generate"])
def test_a_crash_is_reported_and_the_rest_goes_on(monkeypatch, tmp_path, when):
    fault = (when, ("crashed", "ended by SIGILL"))
    record = measure(
        monkeypatch, tmp_path, ("ctranslate2", "llama.cpp"), faults={"ctranslate2": fault}
    )
    entry = entry_of(record, "ctranslate2")
    assert (entry.status, entry.reason) == ("crashed", "ended by SIGILL")
    assert entry_of(record, "llama.cpp").status == "ok"
    assert "ctranslate2 (f32): crashed: ended by SIGILL" in to_markdown(record)


def test_kvik_is_measured_when_no_peer_works(monkeypatch, tmp_path):
    fault = ("load", ("crashed", "ended by SIGILL"))
    record = measure(monkeypatch, tmp_path, ("ctranslate2",), faults={"ctranslate2": fault})
    assert len(entry_of(record, "kvik").cases[0].samples) == 2


def test_a_case_that_is_not_done_leaves_the_others(monkeypatch, tmp_path):
    record = measure(monkeypatch, tmp_path, ("openvino",))
    entry = entry_of(record, "openvino")
    assert entry.status == "ok"
    assert len(entry.cases[0].samples) == 2
    assert entry.case("batch 8").reason == "one sequence at a time"
    assert "one sequence at a time" in to_markdown(record)


def test_an_engine_that_recomputes_makes_few_tokens(monkeypatch, tmp_path):
    record = measure(monkeypatch, tmp_path, ("onnxruntime",))
    entry = entry_of(record, "onnxruntime")
    assert len(entry.tokens) == FEW_TOKENS
    assert entry.same_tokens == FEW_TOKENS
    # Its time is as if it had made all of them at the same rate.
    sample = entry.cases[0].samples[0]
    assert sample.seconds - sample.first_seconds == pytest.approx(0.01 * 20)


def test_more_threads_measure_the_first_case_alone(monkeypatch, tmp_path):
    record = measure(monkeypatch, tmp_path, ("ctranslate2",), scaling_threads=(2, 1))
    one = find(record.entries, "gpt2", "ctranslate2", "f32", 1)
    assert [found.case.name for found in one.cases] == ["decode"]


def test_a_record_is_json(monkeypatch, tmp_path):
    record = measure(monkeypatch, tmp_path, ("ctranslate2",))
    found = json.loads(json.dumps(record.to_json(), default=str))
    summary = found["entries"][1]["cases"][0]["summary"]["decode_tokens_per_second"]
    assert summary["median"] == pytest.approx(100)
    assert summary["kvik_ratio"] == pytest.approx(2)


# ---- processes -------------------------------------------------------------------------------


def client(tmp_path, program, timeout=60.0):
    return Client(
        "played", log=tmp_path / "log", threads=1, timeout_seconds=timeout,
        command=[sys.executable, "-c", program],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("program", "status", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "crashed", "SIGILL"),
        ("import sys; sys.exit('no such thing')", "crashed", "exit status 1: no such thing"),
        ("""print('{"unsupported": "no GPT-2"}')""", "unsupported", "no GPT-2"),
        ("""print('{"error": "ValueError: 3"}')""", "failed", "ValueError: 3"),
    ],
)
def test_what_became_of_a_process(tmp_path, program, status, words):
    with client(tmp_path, program) as worker, pytest.raises(EngineError) as raised:
        worker.ask("load")
    assert raised.value.status == status
    assert words in raised.value.reason
    assert signal.SIGILL.name == "SIGILL"


def test_a_process_that_hangs_is_ended(tmp_path):
    with (
        client(tmp_path, "import time; time.sleep(600)", timeout=0.2) as worker,
        pytest.raises(EngineError, match="timed out"),
    ):
        worker.ask("load")


class Refusing(Peer):
    name = module = distribution = setting = "refusing"
    precisions = ("f32",)

    def prepare(self, work, precision):
        raise UnsupportedCaseError("not this one")

    def load(self, path, precision, threads, positions):
        raise ValueError("two\nlines")

    def generate(self, prompts, new_tokens):
        raise AssertionError("nobody asked")


def test_a_worker_answers_every_command():
    answers = []
    load = {"path": "x", "precision": "f32", "threads": 1, "positions": 8}
    commands = [
        {"do": "prepare", "with": {"work": "w", "model": "gpt2", "precision": "f32"}},
        {"do": "load", "with": load},
        {"do": "gap", "with": {"ids": [1], "first": 1, "second": 2}},
        {"do": "isa", "with": {}},
    ]
    engine = Refusing()
    engine.module = "json"  # of the standard library: load() imports it first
    serve(Worker(engine), map(json.dumps, commands), lambda line: answers.append(json.loads(line)))
    assert answers == [
        {"unsupported": "not this one"},
        {"error": "ValueError: two lines"},
        {"unsupported": "gives no logits"},
        {"ok": ""},
    ]


# ---- the registry ------------------------------------------------------------------------------


def test_every_peer_describes_itself_without_its_package():
    for name in ("kvik", *PEERS):
        engine = peer(name)
        assert engine.name == name
        assert engine.precisions
        assert engine.setting


def test_what_is_not_installed_has_no_version():
    engine = Refusing()
    assert installed_version(engine) is None
    assert installed_version(peer("kvik")) is not None


def test_models_are_those_of_the_exporter():
    pytest.importorskip("transformers")
    from benchmarks.models import SHAPES

    assert tuple(SHAPES) == MODELS
