"""Attention weights: what comes back, how it is drawn, and `kvik attention`."""

import itertools
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvik
from kvik.attention import AttentionMap, spell
from kvik.draw.heat import Panel, colours, lay_out_heat, number_shown, pick_panels
from kvik.draw.heat_svg import render_heat_svg
from kvik.draw.labels import text_units, visible_label

# ---- the weights -------------------------------------------------------------------------------


def test_text_and_ids(text):
    found = text.attention("naïve\n")
    ids = text.tokenizer.encode("naïve\n")
    assert found.weights.shape == (2, 2, len(ids), len(ids))
    assert found.weights.dtype == np.float32
    # A character that is two tokens: neither is whole, and both have the vocabulary's spelling.
    assert found.tokens == found.keys == ["n", "a", "Ã", "¯", "v", "e", "\n"]
    assert found.layers == [0, 1]
    assert len(found.names) == 2
    np.testing.assert_allclose(found.weights.sum(axis=-1), 1, atol=1e-6)
    assert (np.triu(found.weights, 1) == 0).all()
    np.testing.assert_array_equal(text.attention(ids).weights, found.weights)
    assert repr(found) == f"<kvik.Attention: self [2 x 2 x {len(ids)} x {len(ids)}]>"
    assert found["self"].weights is found.weights
    assert repr(found["self"]) == "<kvik.AttentionMap: self, float32 [2 x 2 x 7 x 7]>"
    assert len(found) == 1
    with pytest.raises(kvik.InvalidArgumentError, match="no 'cross' attention here; there is self"):
        found["cross"]


def test_without_tokenizer(plain):
    assert plain.attention([3, 4]).tokens == ["<id 3>", "<id 4>"]
    with pytest.raises(kvik.InvalidArgumentError, match="tokenizer"):
        plain.attention("text")


def test_recomputing_gives_the_same(plain_path, plain):
    """The graph as it stands, whose weights are computed in double precision."""
    ids = np.random.default_rng(0).integers(0, 256, (1, 60))
    [found] = kvik.InferenceSession(plain_path).attention({"input_ids": ids})
    rows = plain.attention(ids[0])
    assert found.weights.shape == (2, 1, 2, 60, 60)
    assert (found.kind, found.queries, found.keys) == ("self", "sequence", "sequence")
    np.testing.assert_allclose(found.weights[:, 0], rows.weights, rtol=0, atol=1e-6)


def test_spelling(tokenizer):
    own = kvik.Tokenizer(tokenizer, "here")
    for written, token in ((" ", "Ġ"), ("\n", "Ċ"), ("a", "a"), ("Ã", "Ã")):
        assert spell(own, own.id_of(token)) == written
    assert spell(own, own.id_of("<|endoftext|>")) == "<|endoftext|>"
    assert spell(None, 7) == "<id 7>"


# ---- labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "label"),
    [(" the", "·the"), ("\n", "↵"), ("\t\r", "⇥␍"), ("", "∅"), ("a\0b", "a\\x00b"),
     ("\u200b", "\\u200b"), ("abcdefghijklmnop", "abcdefghijklm…"), ("日本語", "日本語"),
     ("日本語日本語日本語", "日本語日本語…"), ("e\u0301", "e\u0301"), ("\u00a0", "⍽"),
     ("\u2028", "·"), ("\ud800", "\\ud800")],
)  # fmt: skip
def test_label(token, label):
    assert visible_label(token) == label


@given(st.text())
def test_labels_are_short_and_visible(token):
    label = visible_label(token)
    assert label
    assert text_units(label) <= 14
    assert label.isprintable()


# ---- panels ------------------------------------------------------------------------------------


def causal(layers, heads, count, seed=0):
    scores = np.random.default_rng(seed).standard_normal((layers, heads, count, count))
    scores[..., np.triu(np.ones((count, count), bool), 1)] = -np.inf
    e = np.exp(scores)
    weights = (e / e.sum(-1, keepdims=True)).astype(np.float32)
    tokens = [f" token{i}" for i in range(count)]
    return AttentionMap(
        "self", weights, tokens, tokens, list(range(layers)), [f"/{i}" for i in range(layers)]
    )


def test_what_is_drawn():
    found = causal(3, 4, 5)
    panels, how = pick_panels([found], None, None)
    assert [panel.title for panel in panels] == ["layer 0", "layer 1", "layer 2"]
    assert how == "mean of 4 heads, every layer"
    np.testing.assert_allclose(panels[1].weights, found.weights[1].mean(0), atol=1e-6)
    panels, how = pick_panels([found], 2, None)
    assert ([panel.title for panel in panels][-1], how) == ("head 3", "layer 2, all 4 heads")
    panels, how = pick_panels([found], None, 1)
    assert (len(panels), how) == (3, "head 1, every layer")
    [panel], how = pick_panels([found], 2, 3)
    assert how == "layer 2, head 3"
    np.testing.assert_array_equal(panel.weights, found.weights[2, 3])
    with pytest.raises(kvik.InvalidArgumentError, match="no head 4: the model's layers have 4, 0"):
        pick_panels([found], None, 4)
    # Layers of different heads are maps of their own, and panels of one picture.
    other = causal(1, 1, 5)
    other = AttentionMap("self", other.weights, other.tokens, other.keys, [3], ["/3"])
    panels, _ = pick_panels([found, other], None, None)
    assert [panel.title for panel in panels][-1] == "layer 3"


@settings(max_examples=40, deadline=None)
@given(
    panels=st.integers(1, 30),
    rows=st.integers(1, 130),
    columns=st.integers(1, 130),
    length=st.integers(1, 20),
)
def test_nothing_overlaps(panels, rows, columns, length):
    weights = np.full((rows, columns), 1 / columns, np.float32)
    sheet = lay_out_heat(
        [Panel(f"layer {i}", weights) for i in range(panels)],
        ["x" * length] * rows, ["日" * length] * columns, "title", "subtitle",
    )  # fmt: skip
    room = max(map(text_units, sheet.rows)) * 0.5 * sheet.font  # what the labels take at least
    boxes = []
    for panel in sheet.panels:
        left, top = panel.x - room, panel.y - sheet.column_room - 10
        right = panel.x + columns * sheet.cell
        bottom = panel.y + rows * sheet.cell
        assert left >= 0
        assert top >= 60  # below the titles
        assert right <= sheet.width
        assert bottom <= sheet.bar.y
        boxes.append((left, top, right, bottom))
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    # Labels of neighbours do not touch.
    spacing = {0: sheet.cell, 45: sheet.cell * 0.7, 90: sheet.cell}[sheet.angle]
    assert spacing >= sheet.font
    assert sheet.cell >= sheet.font


def test_colours():
    weights = np.array([[0, 1e-9, 0.2, 0.9]], np.float32)
    found = colours(weights, 0.2)
    assert found.dtype == np.uint8
    assert found[0].tolist() == [[233, 236, 240], [255, 255, 255], [58, 20, 2], [58, 20, 2]]
    grey = colours(np.linspace(1e-6, 1, 200, dtype=np.float32), 1.0).astype(int) @ (3, 6, 1)
    assert (np.diff(grey) <= 0).all()  # more is darker, in print, too


def test_numbers():
    assert number_shown(1.0, 1.0) == ("1", "#ffffff")
    assert number_shown(0.123, 1.0) == (".12", "#3a1402")
    assert number_shown(0.004, 1.0)[0] == ""


def test_svg_is_xml_whatever_the_tokens():
    found = causal(2, 1, 4)
    tokens = ["<s>", "a&b", "\0\ud800", '"\u200b']
    panels, how = pick_panels([found], None, None)
    root = ElementTree.fromstring(render_heat_svg(lay_out_heat(panels, tokens, tokens, how, "s")))
    texts = [item.text for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("<s>") == texts.count("a&b") == 4
    assert len(list(root.iter("{http://www.w3.org/2000/svg}image"))) == 2


# ---- the command -------------------------------------------------------------------------------


def run(*arguments):
    command = [sys.executable, "-m", "kvik.cli", "attention", *map(str, arguments)]
    environment = os.environ | {"TERM": "dumb", "COLUMNS": "100"}
    return subprocess.run(command, capture_output=True, env=environment, text=True, timeout=300)


def fail(*arguments):
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("kvik: error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_command_writes_svg(text_path, tmp_path):
    out = tmp_path / "map.svg"
    done = run(text_path, "to be\nor", "-o", out)
    assert done.returncode == 0, done.stderr
    assert "mean of 2 heads, every layer, 8 x 8 tokens" in done.stdout
    root = ElementTree.parse(out).getroot()
    texts = [item.text for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("↵") == texts.count("·") == 4  # both axes of both layers
    assert list(tmp_path.iterdir()) == [out]


def test_command_writes_png(text_path, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "map.png"
    done = run(text_path, "日本 $x$", "-o", out, "--layer", 1, "--head", 0)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # of characters that the font lacks, too
    assert "layer 1, head 0" in done.stdout
    assert out.read_bytes().startswith(b"\x89PNG")


def test_command_refuses(text_path, plain_path, session_path, tmp_path):
    out = tmp_path / "map.svg"
    assert "writes .png or .svg; found" in fail(text_path, "a", "-o", tmp_path / "map.pdf")
    assert "there is no folder" in fail(text_path, "a", "-o", tmp_path / "none" / "map.svg")
    assert "layer 2 of the attention; the model has 2, 0 to 1" in fail(
        text_path, "a", "-o", out, "--layer", 2
    )
    assert "no head 2" in fail(text_path, "a", "-o", out, "--head", 2)
    assert "65 tokens are more than the model's context of 64" in fail(
        text_path, "a" * 65, "-o", out
    )
    assert "--target is for translators" in fail(text_path, "a", "-o", out, "--target", "b")
    assert "--kind must be" in fail(text_path, "a", "-o", out, "--kind", "b")
    assert "--pair is for models that read two" in fail(text_path, "a", "-o", out, "--pair", "b")
    assert "tokenizer" in fail(plain_path, "a", "-o", out)
    assert "token ids" in fail(session_path, "a", "-o", out)
    assert "no such file" in fail(tmp_path / "none.onnx", "a", "-o", out)
    assert "Missing option" in fail(text_path, "a")
    assert not out.exists()


def test_what_was_there_stays_when_writing_fails(text_path, tmp_path):
    out = tmp_path / "map.svg"
    out.write_text("before")
    fail(text_path, "a", "-o", out, "--head", 9)
    assert out.read_text() == "before"
    folder = tmp_path / "folder.svg"
    folder.mkdir()
    assert "it is a folder" in fail(text_path, "a", "-o", folder)
    assert run(text_path, "a", "-o", out).returncode == 0
    assert out.read_text().startswith("<svg")
    assert sorted(tmp_path.iterdir()) == [folder, out]
