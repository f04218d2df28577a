"""Pictures of graphs: what repeats is found, nothing overlaps, every edge points down."""

import itertools
import xml.etree.ElementTree as ElementTree
from collections import namedtuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvik.draw.layout import lay_out
from kvik.draw.structure import Box, Picture, family_of, find_repeat, make_picture
from kvik.draw.svg import render_svg

Node = namedtuple("Node", "op name inputs outputs")


def chain(*ops):
    """Nodes in a row, and each layer's addition also reads what the layer before gave."""
    nodes, last, residual = [], "ids", "ids"
    for i, op in enumerate(ops):
        inputs = [last, f"w{i}"] + ([residual] if op == "Add" else [])
        last = f"v{i}"
        residual = last if op == "Add" else residual
        nodes.append(Node(op, f"/{i}/{op}", inputs, [last]))
    return nodes


LAYER = ("LayerNormalization", "MatMul", "Gelu", "Add")


def test_layers_are_drawn_once():
    nodes = chain("Gather", *LAYER * 5, "LayerNormalization", "MatMul")
    picture = make_picture(nodes, ["ids"], ["v22"], "title")
    ops = [box.title for box in picture.boxes]
    assert ops == ["ids", "Gather", *LAYER, "LayerNormalization", "MatMul", "v22"]
    assert picture.repeat.count == 5
    held = {picture.boxes[i].title for i in picture.repeat.boxes}
    assert held == set(LAYER)
    # The frame begins where one value alone crosses: at the norm, behind the addition.
    assert min(picture.repeat.boxes) == ops.index("LayerNormalization")


def test_nothing_repeats():
    assert find_repeat(["A", "B", "C", "D"], []) is None
    assert find_repeat([], []) is None
    assert find_repeat(["A", "A", "A", "A"], []) is None  # too short to be a layer


def test_twins_side_by_side_are_no_layers():
    ops = ["Slice", "Neg", "Concat"]
    nodes = []
    for side in "qk":
        names = [side, *(f"{side}{i}" for i in range(3))]
        nodes += [Node(op, "", [a], [b]) for op, a, b in zip(ops, names, names[1:], strict=False)]
    assert make_picture(nodes, ["q", "k"], ["q2", "k2"]).repeat is None


def test_a_mask_that_every_layer_reads_stays_outside():
    nodes = [Node("Range", "mask", ["ids"], ["m"])]
    for i in range(4):
        before = f"x{i}" if i else "ids"
        nodes += [
            Node("MatMul", f"{i}.q", [before], [f"q{i}"]),
            Node("Attention", f"{i}.a", [f"q{i}", "m"], [f"a{i}"]),
            Node("Add", f"{i}.r", [before, f"a{i}"], [f"x{i + 1}"]),
        ]
    picture = make_picture(nodes, ["ids"], ["x4"])
    titles = [box.title for box in picture.boxes]
    assert titles == ["ids", "Range", "MatMul", "Attention", "Add", "x4"]
    assert (titles.index("Range"), titles.index("Attention")) in picture.edges
    assert (titles.index("Add"), titles.index("x4")) in picture.edges


def test_names_that_occur_twice_mean_the_last_before():
    nodes = [Node("Reshape", "", ["ids"], ["ids"]), Node("Gather", "", ["w", "ids"], ["x"])]
    picture = make_picture(nodes, ["ids"], ["x"])
    assert picture.edges == [(0, 1), (1, 2), (2, 3)]


def test_unread_inputs_are_left_out():
    picture = make_picture([Node("Neg", "", ["x"], ["y"])], ["unused", "x"], ["y"])
    assert [box.title for box in picture.boxes] == ["x", "Neg", "y"]


def test_families():
    assert family_of("kvik.RowAttention") == "attention"
    assert family_of("com.microsoft.MultiHeadAttention") == "attention"
    assert family_of("MatMul") == "product"
    assert family_of("SomethingNew") == "other"


graphs = st.integers(2, 25).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(
            st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda e: e[0] < e[1]),
            max_size=50,
        ),
    )
)


@given(graphs)
@settings(max_examples=60, deadline=None)
def test_any_graph_is_laid_out_cleanly(graph):
    count, edges = graph
    boxes = [Box(f"Op{i}" * (1 + i % 3), "name" * (i % 4), "element") for i in range(count)]
    layout = lay_out(Picture(boxes, sorted(set(edges))))
    for i, a in enumerate(layout.boxes):
        assert a.x - a.width / 2 >= 0
        assert a.x + a.width / 2 <= layout.width
        assert a.y - a.height / 2 >= 0
        assert a.y + a.height / 2 <= layout.height
        for b in layout.boxes[:i]:
            apart_x = abs(a.x - b.x) >= (a.width + b.width) / 2
            apart_y = abs(a.y - b.y) >= (a.height + b.height) / 2
            assert apart_x or apart_y, "boxes overlap"
    for route in layout.edges:
        assert all(y0 < y1 for (_, y0), (_, y1) in itertools.pairwise(route))
    ElementTree.fromstring(render_svg(layout))


def test_crossings_are_avoided():
    """Two independent chains, listed so that the first order crosses."""
    boxes = [Box(name, "", "other") for name in "abcd"]
    layout = lay_out(Picture(boxes, [(0, 3), (1, 2)]))
    a, b, c, d = layout.boxes
    assert (a.x < b.x) == (d.x < c.x)


def test_frame_holds_its_boxes():
    layout = lay_out(make_picture(chain("Gather", *LAYER * 3), ["ids"], ["v12"]))
    frame = layout.frame
    assert frame.label == "× 3"
    inside = [box for box in layout.boxes if frame.y < box.y < frame.y + frame.height]
    assert [box.title for box in sorted(inside, key=lambda box: box.y)] == list(LAYER)
    for box in inside:
        assert frame.x < box.x - box.width / 2
        assert box.x + box.width / 2 < frame.x + frame.width <= layout.width


def test_svg_escapes_names():
    nodes = [Node("Op<&>", 'a"<b>', ["x"], ["y"])]
    text = render_svg(lay_out(make_picture(nodes, ["x"], ["y"], "<title> & more")))
    root = ElementTree.fromstring(text)
    assert any(item.text == "Op<&>" for item in root.iter())


def test_an_empty_graph_is_an_empty_picture():
    ElementTree.fromstring(render_svg(lay_out(make_picture([], [], []))))


def test_png_of_names_with_dollars(tmp_path):
    pytest.importorskip("matplotlib")
    from kvik.draw.png import write_png

    nodes = [Node("A$b$", "c$d", ["x"], ["y"])]
    write_png(lay_out(make_picture(nodes, ["x"], ["y"], "$")), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_png_that_would_be_too_large_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    from kvik.draw.png import write_png
    from kvik.errors import UnsupportedError

    boxes = [Box("Op", "", "other") for _ in range(600)]
    layout = lay_out(Picture(boxes, [(i, i + 1) for i in range(599)]))
    with pytest.raises(UnsupportedError, match=r"write an \.svg"):
        write_png(layout, tmp_path / "a.png")
