"""What is concluded from samples and tokens, how it is written, and command-line mistakes."""

import pytest
from benchmarks.__main__ import main, parse, write
from benchmarks.check import check_tokens
from benchmarks.entries import roofline_key
from benchmarks.peers import PEERS
from benchmarks.plan import MODELS, Case
from benchmarks.results import (
    CaseSamples,
    Entry,
    Record,
    Sample,
    leading_same,
    summarize,
)
from benchmarks.table import to_markdown

CASE = Case("decode", 2, 100, 11)


def test_medians_and_ratios():
    found = CaseSamples(
        CASE,
        samples=[Sample(0.5, 1.5), Sample(0.4, 0.6), Sample(1.0, 5.0)],
        kvik=[Sample(0.25, 0.35), Sample(0.2, 0.25)],
    )
    summary = summarize(found)
    prefill, decode = summary["prefill_tokens_per_second"], summary["decode_tokens_per_second"]
    assert prefill["min"] == 200
    assert prefill["median"] == 400
    assert prefill["max"] == pytest.approx(500)
    assert prefill["kvik_ratio"] == pytest.approx(900 / 400)
    assert decode["median"] == pytest.approx(20)
    assert decode["kvik_ratio"] == pytest.approx(300 / 20)
    assert summary["first_token_seconds"]["median"] == 0.5


def test_a_case_without_samples_or_tokens_to_decode():
    assert summarize(CaseSamples(CASE)) == {}
    prefill = CaseSamples(Case("prompt", 1, 100, 1), samples=[Sample(0.5, 0.5)])
    assert set(summarize(prefill)) == {"prefill_tokens_per_second", "first_token_seconds"}


def test_leading_tokens():
    assert leading_same([1, 2, 3], [1, 2, 4, 5]) == (2, 3)
    assert leading_same([1, 2], [1, 2, 4]) == (2, 2)
    assert leading_same([], [1]) == (0, 0)


# ---- tokens ------------------------------------------------------------------------------------


def entry(engine, tokens, precision="f32", **more):
    found = Entry("gpt2", engine, precision, 2, tokens=tokens, version="1.0", **more)
    found.cases = [CaseSamples(CASE, [Sample(0.5, 1.5)], [Sample(0.25, 0.35)])]
    return found


def judge(entries, gap=0.5):
    check_tokens(entries, "gpt2", 2, lambda model, ids, first, second: gap)
    return entries


def test_the_same_tokens_are_right():
    ours, _ = judge([entry("kvik", [1, 2, 3]), entry("onnxruntime", [1, 2])])
    assert (ours.status, ours.same_tokens, ours.compared_tokens) == ("ok", 2, 2)
    assert ours.reference == "onnxruntime"


def test_other_tokens_are_wrong():
    ours, theirs = judge([entry("kvik", [1, 9, 3]), entry("onnxruntime-cache", [1, 2, 3])])
    assert ours.status == "wrong"
    assert ours.reason == (
        "token 1 is 9; onnxruntime-cache has 2; 2 is 0.5 ahead by onnxruntime's logits"
    )
    assert theirs.reference == "kvik"


def test_a_tie_is_not_wrong():
    ours, _ = judge([entry("kvik", [1, 9]), entry("onnxruntime", [1, 2])], gap=1e-5)
    assert ours.status == "ok"
    assert ours.tie


def test_low_precision_may_choose_otherwise():
    _, low = judge([entry("kvik", [1, 2, 3]), entry("ctranslate2", [1, 2, 9], "int8")])
    assert (low.status, low.same_tokens, low.compared_tokens) == ("ok", 2, 3)
    assert low.reference == "kvik"


# ---- the table and the pictures ------------------------------------------------------------------


def record_of(entries):
    machine = {"cpu": "A CPU", "cpus": 2, "flags": ["avx2"], "system": "Linux", "python": "3.11"}
    plan = {"rounds": 1, "threads": (2,), "precisions": ("f32", "int8")}
    line = {"decode_tokens_per_second": 80.0, "prefill_tokens_per_second": 4000.0}
    lines = {roofline_key("gpt2", precision, 2): line for precision in plan["precisions"]}
    return Record(machine, plan, "abc", lines, list(entries))


def test_table():
    wrong = entry("ctranslate2", [9], status="wrong", reason="token 0 is 9")
    crashed = Entry("gpt2", "llama.cpp", "int8", 2, status="crashed", reason="ended by SIGILL")
    ours = entry("kvik", [1, 2], peak_bytes=3 << 20, disk_bytes=5_000_000, load_seconds=[0.25])
    ours.cases[0].kvik = []
    table = to_markdown(record_of([ours, *judge([wrong, entry("onnxruntime", [1, 2])]), crashed]))
    lines = table.splitlines()
    assert "| **kvik** | f32 | 500 | 400 |  | 20.0 |  | 25% | 0.25 | 3 | 5 |  |" in lines
    assert any(line.startswith("| onnxruntime | f32 | 500 | 400 | 2.00 |") for line in lines)
    assert any("**WRONG**: token 0 is 9" in line for line in lines)
    assert "- llama.cpp (int8): crashed: ended by SIGILL" in lines
    assert "| kvik | 1.0 |  |" in lines
    widths = {line.count("|") for line in lines if line.startswith("| ") and "f32" in line}
    assert widths == {13}


def test_written_files(tmp_path):
    pytest.importorskip("matplotlib")
    entries = [entry("kvik", [1, 2]), entry("onnxruntime", [1, 2]), entry("kvik", [1], "int8")]
    for one in entries:
        for batch, length, tokens in ((8, 100, 5), (1, 16, 1), (1, 64, 1)):
            case = Case(f"{batch} {length}", batch, length, tokens)
            one.cases.append(CaseSamples(case, [Sample(0.1 * length, 0.2 * length)]))
    write(record_of(entries), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    pictures = {f"gpt2-{name}.png" for name in ("rates", "prompt", "scaling")}
    assert names == {"results.json", "results.md"} | pictures
    text = (tmp_path / "results.md").read_text()
    assert all(f"({name})" in text for name in pictures)
    for name in pictures:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


# ---- the command line ----------------------------------------------------------------------------


def test_the_short_form():
    plan = parse([])
    assert plan.models == ("gpt2",)
    assert plan.peers == PEERS
    assert plan.precisions == ("f32", "int8", "int4")
    assert all(case.new_tokens > 1 for case in plan.cases)


def test_the_long_form():
    plan = parse(["--all", "--rounds", "3", "--models", "gpt2,llama-135m"])
    assert plan.models == ("gpt2", "llama-135m")
    assert plan.threads == (2,)
    assert plan.scaling_threads == (1,)
    assert plan.rounds == 3
    assert any(case.new_tokens == 1 for case in plan.cases)
    assert parse(["--all"]).models == MODELS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "gpt3"], "'gpt3' is none of gpt2, llama-135m, llama-1.1b"),
        (["--peers", "openvino,nobody"], "'nobody' is none of onnxruntime"),
        (["--precisions", "fp8"], "'fp8' is none of f32, bf16, int8, int4"),
        (["--rounds", "0"], "'0' is no number from 1 on"),
        (["--threads", "2,x"], "'x' is no number from 1 on"),
        (["--new-tokens", "1"], "--new-tokens must be at least 2"),
    ],
)
def test_mistakes(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_an_interrupted_run_writes_what_it_has(monkeypatch, tmp_path, capsys):
    class Interrupted:
        def __init__(self, plan, progress):
            self.record = record_of([entry("kvik", [1, 2])])

        def run(self):
            raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.__main__.Runner", Interrupted)
    assert main(["-o", str(tmp_path)]) == 130
    assert "| **kvik** | f32 |" in capsys.readouterr().out
    assert (tmp_path / "results.json").is_file()


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "taking turns" in capsys.readouterr().out
