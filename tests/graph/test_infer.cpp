// Inferred shapes and contents against what the values are when the graph runs, over random shapes.
#include "graph/axes.h"
#include "graph/builder.h"
#include "graph/infer_check.h"

namespace kvik::test {
namespace {

constexpr int kRounds = 120;

// Random graphs of shape arithmetic, ranges, comparisons and data movement, on integers.
class RandomGraph {
 public:
  explicit RandomGraph(std::uint64_t stream) : random_(stream) {
    const ValueId x = b.input("x", {sym("b"), sym("s")}, DType::kI64);
    const ValueId shape = b.node("Shape", {x});
    const ValueId zero = scalar(0);
    const ValueId one = scalar(1);
    length_ =
        b.node("Gather", {shape, scalar(random_.integer(-2, 1))}, {{"axis", std::int64_t{0}}});
    const ValueId range = b.node("Range", {zero, length_, one});
    matrices_.push_back(b.node("Unsqueeze", {range, b.ints({random_.integer(0, 1)})}));
    matrices_.push_back(b.node("ConstantOfShape", {shape}, {{"value", one_element()}}));
    matrices_.push_back(b.graph.add_constant(
        "table",
        graph::ConstantTensor::from_ints(std::vector<std::int64_t>{3, 1, 4, 1, 5, 9}, Dims{2, 3})));
  }

  graph::Graph take(int steps) {
    for (int i = 0; i < steps; ++i) step();
    for (std::size_t i = 0; i < matrices_.size(); ++i) {
      if (b.graph.constant(matrices_[i]) == nullptr) b.graph.outputs.push_back(matrices_[i]);
    }
    return b.graph;
  }

 private:
  ValueId scalar(std::int64_t value) {
    return b.graph.add_constant("i" + std::to_string(serial_++),
                                graph::ConstantTensor::from_ints({{value}}, Dims{}));
  }
  graph::ConstantTensor one_element() {
    return graph::ConstantTensor::from_ints({{random_.integer(-2, 2)}}, Dims{1});
  }
  ValueId any() {
    return matrices_[static_cast<std::size_t>(
        random_.integer(0, static_cast<std::int64_t>(matrices_.size()) - 1))];
  }
  void unary(const char* op, std::vector<ValueId> more, Attributes attributes = {}) {
    std::vector<ValueId> inputs{any()};
    inputs.insert(inputs.end(), more.begin(), more.end());
    matrices_.push_back(b.node(op, std::move(inputs), std::move(attributes)));
  }

  void step() {
    const std::int64_t axis = random_.integer(-2, 1);
    switch (random_.integer(0, 12)) {
      case 0: return unary("Transpose", {}, {{"perm", std::vector<std::int64_t>{1, 0}}});
      case 1:
        return unary("Slice",
                     {b.ints({random_.integer(-3, 3)}), b.ints({INT64_MAX}), b.ints({axis})});
      case 2:
        return unary("Slice", {b.ints({0}), b.ints({random_.integer(-2, 4)}), b.ints({axis})});
      case 3:
        return unary("Slice", {b.ints({0}), b.ints({INT64_MAX}), b.ints({axis}), b.ints({2})});
      case 4:
        return unary("Slice", {b.ints({-1}), b.ints({INT64_MIN}), b.ints({axis}), b.ints({-1})});
      case 5: return unary("Add", {scalar(random_.integer(-3, 3))});
      case 6: return unary("Mul", {scalar(random_.integer(-2, 3))});
      case 7: return unary("Tile", {b.ints({random_.integer(1, 2), random_.integer(1, 2)})});
      case 8: {
        const ValueId v = any();
        matrices_.push_back(b.node("Concat", {v, v}, {{"axis", axis}}));
        return;
      }
      case 9:
        return unary("Trilu", {scalar(random_.integer(-1, 1))}, {{"upper", random_.integer(0, 1)}});
      case 10: return unary("CumSum", {scalar(axis)}, {{"exclusive", random_.integer(0, 1)}});
      case 11: {
        const ValueId v = any();
        const ValueId less = b.node("Less", {v, scalar(random_.integer(-1, 4))});
        matrices_.push_back(b.node("Where", {less, v, scalar(random_.integer(-2, 2))}));
        return;
      }
      default: return unary("Reshape", {b.ints({-1, 1})});
    }
  }

  Builder b;
  Random random_;
  std::vector<ValueId> matrices_;  // all of rank 2
  ValueId length_ = graph::kNoValue;
  int serial_ = 0;
};

KVIK_TEST(random_graphs_are_inferred_as_they_run) {
  int shapes = 0;
  int contents = 0;
  for (int round = 0; round < kRounds; ++round) {
    const graph::Graph graph = RandomGraph(static_cast<std::uint64_t>(round)).take(7);
    for (const std::map<std::string, std::int64_t>& dims :
         {std::map<std::string, std::int64_t>{{"b", 2}, {"s", 5}},
          {{"b", 1}, {"s", 1}},
          {{"b", 4}, {"s", 3}}}) {
      const InferCheck check = check_inference(graph, dims, 3);
      for (const std::string& wrong : check.wrong) {
        CHECK(false) << "b=" << dims.at("b") << " s=" << dims.at("s") << " " << wrong << "\n"
                     << graph::dump(graph);
      }
      shapes += check.shapes;
      contents += check.contents;
    }
  }
  // The test says little where nothing is inferred.
  CHECK(shapes > 3 * kRounds * 5) << shapes << " shapes compared";
  CHECK(contents > 3 * kRounds * 4) << contents << " contents compared";
}

// Convolutions, pools, Resize and recurrent layers over random windows.
graph::Graph window_graph(std::uint64_t stream) {
  Random random(stream);
  const auto two = [&](std::int64_t low, std::int64_t high) {
    return std::vector<std::int64_t>{random.integer(low, high), random.integer(low, high)};
  };
  Builder b;
  const ValueId x = b.input("x", {sym("b"), 4, sym("s"), sym("t")});
  const std::vector<std::int64_t> kernel = two(1, 3);
  Attributes window{{"strides", two(1, 3)}, {"dilations", two(1, 2)}};
  if (random.integer(0, 2) == 0) {
    window["auto_pad"] = std::string(random.integer(0, 1) == 0 ? "SAME_UPPER" : "VALID");
  } else {
    std::vector<std::int64_t> pads = two(0, 2);
    for (const std::int64_t pad : two(0, 2)) pads.push_back(pad);
    window["pads"] = pads;
  }
  const ValueId w = b.weight("w", {6, 4, kernel[0], kernel[1]});
  Attributes pool = window;
  pool["kernel_shape"] = kernel;
  pool["ceil_mode"] = random.integer(0, 1);
  Attributes plain = window;
  plain.erase("auto_pad");
  plain["output_padding"] = two(0, 1);
  const ValueId flipped = b.weight("v", {4, 3, 3, 5});
  b.graph.outputs = {b.node("Conv", {x, w}, window), b.node("MaxPool", {x}, pool),
                     b.node("AveragePool", {x}, pool), b.node("GlobalAveragePool", {x}),
                     b.node("ConvTranspose", {x, flipped}, plain)};
  const ValueId rows = b.input("rows", {sym("s"), sym("b"), 5});
  for (const auto& [op, gates] : {std::pair{"LSTM", 4}, {"GRU", 3}, {"RNN", 1}}) {
    const std::string name = op;
    b.graph.outputs.push_back(b.node(op, {rows, b.weight(name + "w", {1, gates * 3, 5}),
                                          b.weight(name + "r", {1, gates * 3, 3})}));
  }
  b.graph.outputs.push_back(
      b.node("Resize", {x, graph::kNoValue, graph::kNoValue, b.ints({2, 4, 7, 3})}));
  return b.graph;
}

KVIK_TEST(windows_are_inferred_as_they_run) {
  int shapes = 0;
  for (int round = 0; round < kRounds; ++round) {
    const graph::Graph graph = window_graph(static_cast<std::uint64_t>(round));
    for (const std::map<std::string, std::int64_t>& dims :
         {std::map<std::string, std::int64_t>{{"b", 2}, {"s", 6}, {"t", 9}},
          {{"b", 1}, {"s", 11}, {"t", 8}}}) {
      const InferCheck check = check_inference(graph, dims, 4);
      for (const std::string& wrong : check.wrong) {
        CHECK(false) << "s=" << dims.at("s") << " " << wrong << "\n" << graph::dump(graph);
      }
      shapes += check.shapes;
    }
  }
  CHECK(shapes > 2 * kRounds * 6) << shapes << " shapes compared";
}

graph::Axis atoms(std::vector<std::pair<int, Expr>> list) {
  graph::Axis axis;
  for (auto& [role, size] : list) axis.push_back({role, size, false});
  return axis;
}

KVIK_TEST(regroup_splits_and_joins) {
  const Expr s = sym("s");
  const graph::Layout from{atoms({{0, sym("b")}}), atoms({{1, s}}), atoms({{2, Expr(8)}})};
  const std::vector<Expr> heads{sym("b"), s, 2, 4};
  const auto split = graph::regroup(from, heads);
  CHECK(split.has_value());
  if (split) {
    CHECK_EQ(split->size(), 4U);
    CHECK((*split)[2] == atoms({{2, Expr(2)}}));
    CHECK((*split)[3] == atoms({{2, Expr(4)}}));
  }
  const std::vector<Expr> flat{sym("b") * s, 8};
  const auto merged = graph::regroup(from, flat);
  CHECK(merged && (*merged)[0] == atoms({{0, sym("b")}, {1, s}}));
  const std::vector<Expr> crossing{sym("b") * Expr(2), s, 4};
  CHECK(!graph::regroup(from, crossing));
  const std::vector<Expr> too_small{sym("b"), s, 4};
  CHECK(!graph::regroup(from, too_small));
  const std::vector<Expr> units{1, sym("b"), 1, s, 8, 1};
  const auto padded = graph::regroup(from, units);
  CHECK(padded && (*padded)[0].empty() && (*padded)[5].empty() && padded->size() == 6);
}

}  // namespace
}  // namespace kvik::test

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
