"""The encoders' benchmark: turns and comparisons with engines that are played, tables, options."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import ClassVar

import numpy as np
import pytest
from benchmarks import rounds as rounds_module
from benchmarks.client import EngineError
from benchmarks.encoders.__main__ import main, parse, write
from benchmarks.encoders.beam_search import beam_search
from benchmarks.encoders.check import OutputCheck, compare
from benchmarks.encoders.engines import PEERS, engine
from benchmarks.encoders.engines.base import EncoderEngine, UnsupportedCaseError
from benchmarks.encoders.inputs import Sentences, make_inputs
from benchmarks.encoders.operations import operations
from benchmarks.encoders.plan import CASES, MODELS, Case, Plan
from benchmarks.encoders.results import CaseSamples, summarize
from benchmarks.encoders.run import Runner
from benchmarks.encoders.table import to_markdown
from benchmarks.encoders.worker import EncoderWorker
from benchmarks.entries import find
from benchmarks.worker import serve

CASE = Case("1×4", "bert-base", 1, (4, 4))
TRANSLATION = Case("2 sentences", "transformer-base", 2, (3, 5), beams=2, new_tokens=3)

# ---- inputs and operations -----------------------------------------------------------------------


def test_inputs_depend_on_the_seed_alone():
    first, again, other = (make_inputs(CASE, seed) for seed in (0, 0, 1))
    assert np.array_equal(first["input_ids"], again["input_ids"])
    assert not np.array_equal(first["input_ids"], other["input_ids"])
    assert first["input_ids"].shape == first["attention_mask"].shape == (1, 4)
    assert make_inputs(CASES["vit-b16"][1], 0)["image"].shape == (8, 3, 224, 224)


def test_sentences_are_of_all_lengths():
    (case,) = CASES["transformer-base"]
    sentences = make_inputs(case, 0)
    lengths = sorted(map(len, sentences.sources))
    assert (len(lengths), lengths[0], lengths[-1]) == (16, 20, 40)
    assert (sentences.beams, sentences.new_tokens) == (4, 32)
    assert min(map(min, sentences.sources)) >= 4


def test_operations_of_known_models():
    """BERT-base has 85 million weights in its layers; ViT-B/16 takes 17.6 GFLOPs with 197 tokens,
    of which attention, which is not counted, is 4 %."""
    work = operations("bert-base", make_inputs(CASES["bert-base"][1], 0))
    assert work == pytest.approx(2 * 128 * 85e6, rel=0.01)
    work = operations("vit-b16", make_inputs(CASES["vit-b16"][0], 0))
    assert work == pytest.approx(2 * 17.6e9 * 0.96, rel=0.02)


def test_operations_of_a_translation():
    one = operations("transformer-base", Sentences([[4] * 10], 4, 1))
    longer = operations("transformer-base", Sentences([[4] * 10], 4, 2))
    decoder = 6 * (8 * 512**2 + 2 * 512 * 2048) - 6 * 2 * 512**2 + 512 * 37000
    assert longer - one == 2 * 4 * decoder


# ---- whether outputs are right -------------------------------------------------------------------


def test_the_error_is_relative_to_the_largest_output():
    reference = {"output": np.array([[1.0, -4.0], [0.0, 2.0]], np.float32)}
    check = compare({"output": reference["output"] + np.float32(0.002)}, reference)
    assert check.error == pytest.approx(0.0005, rel=1e-3)
    assert check.cosine == pytest.approx(1, abs=1e-5)
    assert check.wrong() == ""
    assert compare({"output": -reference["output"]}, reference).wrong() == "outputs are 2.0e+00 off"
    assert compare({"output": np.zeros(3)}, reference).wrong()
    assert compare({"output": np.full((2, 2), np.nan)}, reference).wrong()


def translated(tokens, values):
    return {"tokens": np.array(tokens), "log_probabilities": np.array(values)}


def test_translations_are_compared_as_far_as_the_reference_goes():
    reference = translated([[5, 6], [7, 8]], [-2.0, -4.0])
    check = compare(translated([[5, 6], [7, 9], [1, 1]], [-2.0, -4.002, -1.0]), reference)
    assert (check.same, check.compared) == (1, 2)
    assert check.error == pytest.approx(0.0005)
    assert check.wrong() == ""  # a tie
    other = compare(translated([[5, 7], [7, 9]], [-2.0, -4.0]), reference)
    assert other.wrong() == "2 of 2 translations differ"
    assert compare(translated([[5, 6], [7, 8]], [-2.0, -4.1]), reference).wrong()


def test_beam_search_finds_what_greedy_search_misses():
    """The second best first token has the best continuation."""

    def last_logits(targets):
        rows = {1: [0.0, 0.0, 0.5, 0.4], 2: [0.1, 0.0, 0.2, 0.1], 3: [9.0, 0.0, 0.0, 0.0]}
        return np.array([rows[int(target[-1])] for target in targets])

    assert beam_search(last_logits, 1, 1, 2)[0] == [2, 2]
    tokens, value = beam_search(last_logits, 1, 2, 2)
    assert tokens == [3, 0]
    first = np.exp([0.0, 0.0, 0.5, 0.4])
    second = np.exp([9.0, 0.0, 0.0, 0.0])
    expected = np.log(first[3] / first.sum()) + np.log(second[0] / second.sum())
    assert value == pytest.approx(expected)


# ---- the rounds ----------------------------------------------------------------------------------


class Played:
    """Stands for a worker: kvik takes a hundredth of a second, the others twice that."""

    log: ClassVar = []  # (engine, command) of all

    def __init__(self, engine, outputs, fault):
        self.engine, self.outputs, self.fault = engine, outputs, fault

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, do, **arguments):
        Played.log.append((self.engine, do))
        if self.fault is not None and self.fault[0] == do:
            raise EngineError(*self.fault[1])
        if do == "reference":
            for path in arguments["paths"]:
                save(path, np.ones(4, np.float32))
            return None
        if do == "save":
            return save(arguments["path"], self.outputs)
        return {
            "prepare": {"path": "model", "bytes": 5},
            "load": {"seconds": 0.5},
            "run": 0.01 if self.engine == "kvik" else 0.02,
            "peak_operations": 1e12,
            "isa": "avx2",
            "peak": 1 << 20,
        }[do]


def save(path, output):
    with open(path, "wb") as file:  # noqa: PTH123 - as numpy would, without its suffix
        np.savez(file, output=output)


def measure(monkeypatch, tmp_path, *, peers=("openvino",), outputs=None, faults=None, absent=()):
    Played.log = []
    monkeypatch.setattr(
        rounds_module, "installed_version", lambda one: None if one.name in absent else "1.0"
    )
    (tmp_path / "outputs").mkdir()
    plan = Plan(
        models=("bert-base",), peers=peers, precisions=("f32", "int8"), threads=(2,), rounds=2,
        cases=(CASE,), work=tmp_path, out=tmp_path, rest_seconds=0.0,
    )  # fmt: skip

    def opened(name, threads):
        right = np.ones(4, np.float32)
        return Played(name, (outputs or {}).get(name, right), (faults or {}).get(name))

    runner = Runner(plan, lambda text: None, opened)
    runner.run()
    return runner.record


def test_engines_take_turns(monkeypatch, tmp_path):
    record = measure(monkeypatch, tmp_path)
    turns = [name for name, do in Played.log if do == "run"]
    # Two rounds of two precisions, each turn a warm-up and what counts.
    assert turns == ["kvik", "kvik", "openvino", "openvino"] * 4
    entry = find(record.entries, "bert-base", "openvino", "int8", 2)
    assert entry.cases[0].samples == [0.02, 0.02]
    assert entry.cases[0].kvik == [0.01, 0.01]
    assert entry.checks["1×4"] == OutputCheck(0.0, pytest.approx(1))
    assert not list((tmp_path / "outputs").iterdir())  # what was compared does not stay
    table = to_markdown(record)
    share = operations("bert-base", make_inputs(CASE, 0)) / 1e12 / 0.02
    row = f"| openvino | int8 | 20.0 | 20.0 to 20.0 | 2.00 | {share:.0%} | cosine 1.0000 |"
    assert row in table
    assert "| **kvik** | f32 | 10.0 | 10.0 to 10.0 |  |" in table
    assert "avx2 kernels" in table


def test_wrong_outputs_are_reported_in_f32(monkeypatch, tmp_path):
    record = measure(monkeypatch, tmp_path, outputs={"openvino": np.array([1, 1, 1, 0.5])})
    found = {entry.precision: entry for entry in record.entries if entry.engine == "openvino"}
    assert (found["f32"].status, found["int8"].status) == ("wrong", "ok")
    table = to_markdown(record)
    assert "**WRONG**: outputs are 5.0e-01 off" in table
    assert "| cosine 0.9707 |" in table


def test_absent_peers_and_conversions_that_fail_are_named(monkeypatch, tmp_path):
    record = measure(
        monkeypatch, tmp_path, peers=("onnxruntime", "openvino"), absent=("onnxruntime",),
        faults={"openvino": ("prepare", ("unsupported", "nncf is not installed"))},
    )  # fmt: skip
    table = to_markdown(record)
    assert "- onnxruntime (f32, int8): absent: not installed (pip install onnxruntime)" in table
    assert "- openvino (f32, int8): unsupported: nncf is not installed" in table
    ours = find(record.entries, "bert-base", "kvik", "f32", 2)
    assert ours.cases[0].samples == [0.01, 0.01]  # without a peer


def test_without_a_reference_outputs_are_not_compared(monkeypatch, tmp_path):
    fault = ("reference", ("crashed", "exit status 1"))
    record = measure(monkeypatch, tmp_path, faults={"onnxruntime": fault})
    table = to_markdown(record)
    assert "Outputs were not compared: onnxruntime crashed: exit status 1." in table
    assert "| not compared |" in table


def test_written_files(monkeypatch, tmp_path):
    record = measure(monkeypatch, tmp_path)
    write(record, tmp_path / "results")
    found = json.loads((tmp_path / "results" / "encoders.json").read_text())
    summary = found["entries"][1]["cases"][0]["summary"]
    assert summary["kvik_ratio"] == pytest.approx(2)
    assert found["entries"][1]["checks"]["1×4"]["error"] == 0
    assert (tmp_path / "results" / "encoders.md").read_text() == to_markdown(record)


def test_ratios():
    found = CaseSamples(CASE, samples=[0.3, 0.1, 0.2], kvik=[0.05, 0.1, 0.04])
    summary = summarize(found, 0.02)
    assert summary["seconds"] == {"min": 0.1, "median": 0.2, "max": 0.3}
    assert summary["kvik_ratio"] == pytest.approx(4)
    assert summary["of_the_ceiling"] == pytest.approx(0.1)
    assert summarize(CaseSamples(CASE), None) == {}


# ---- engines -------------------------------------------------------------------------------------


class Doubling(EncoderEngine):
    name = module = distribution = "json"  # of the standard library: load() imports it first
    setting = "doubles"
    precisions = ("f32",)
    made_ready = 0

    def prepare(self, work, precision):
        raise UnsupportedCaseError("not this one")

    def load(self, path, model, precision, threads):
        pass

    def ready(self, inputs):
        self.made_ready += 1
        return lambda: 2 * inputs["input_ids"]


def test_a_worker_answers_every_command(tmp_path):
    answers, doubling = [], Doubling()
    case = json.loads(json.dumps(asdict(CASE)))
    commands = [
        ("prepare", {"work": "w", "model": "bert-base", "precision": "f32"}),
        ("load", {"path": "x", "precision": "f32", "threads": 1, "model": "bert-base"}),
        ("run", {"case": case, "seed": 3}),
        ("run", {"case": case, "seed": 3}),
        ("save", {"path": str(tmp_path / "new" / "out.npz")}),
    ]
    lines = [json.dumps({"do": do, "with": arguments}) for do, arguments in commands]
    serve(EncoderWorker(doubling), lines, lambda line: answers.append(json.loads(line)))
    refused, loaded, first, _, saved = answers
    assert refused == {"unsupported": "not this one"}
    assert loaded["ok"]["seconds"] >= 0
    assert first["ok"] >= 0
    assert saved == {"ok": None}
    assert doubling.made_ready == 1  # no part of what is measured
    output = np.load(tmp_path / "new" / "out.npz")["output"]
    assert np.array_equal(output, 2 * make_inputs(CASE, 3)["input_ids"])


def test_every_engine_describes_itself():
    for name in ("kvik", *PEERS):
        one = engine(name)
        assert one.name == name
        assert one.precisions
        assert one.setting


# ---- the command line ----------------------------------------------------------------------------


def test_everything_is_measured_unless_told_otherwise():
    plan = parse([])
    assert (plan.models, plan.peers, plan.threads, plan.rounds) == (MODELS, PEERS, (2,), 5)
    assert plan.precisions == ("f32", "bf16", "int8", "int4")
    plan = parse(["--models", "vit-b16", "--threads", "1,2", "--peers", "openvino"])
    assert {case.model for case in plan.cases} == {"vit-b16"}
    assert (plan.threads, plan.peers) == ((1, 2), ("openvino",))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "bert"], "'bert' is none of bert-base, vit-b16, transformer-base"),
        (["--peers", "tensorflow"], "'tensorflow' is none of onnxruntime, openvino"),
        (["--precisions", "fp8"], "'fp8' is none of f32, bf16, int8, int4"),
        (["--rounds", "0"], "'0' is no number from 1 on"),
    ],
)
def test_mistakes(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
