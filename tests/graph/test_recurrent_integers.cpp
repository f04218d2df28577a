// fuse_recurrent: LSTM, GRU and RNN on weights that are stored as integers.
#include "graph/builder.h"
#include "graph/passes/prove_rowwise.h"

namespace kvik::test {
namespace {

constexpr std::int64_t kInputs = 6;
constexpr std::int64_t kUnits = 5;

struct Layer {
  std::string op = "LSTM";
  std::int64_t directions = 1;
  bool w = true, r = true;       // which are integers
  std::int64_t block = 0;        // along the inputs; 0: a scale per row
  const char* view = "Reshape";  // that gives the matrix its three axes
  std::int64_t split = 1;        // inputs that become rows: the view moves the last axis
  bool computed_scales = false;
};

// x [b, s, kInputs] -> a layer along s.
struct Stored {
  Builder b;

  // DequantizeLinear of int8 [rows, columns], as three axes.
  ValueId integers(const std::string& name, const Layer& l, std::int64_t rows,
                   std::int64_t columns) {
    const std::int64_t all = l.directions * rows * l.split, width = columns / l.split;
    graph::ConstantTensor q = graph::ConstantTensor::allocate(DType::kI8, Dims{all, width});
    for (std::size_t i = 0; i < q.data.size(); ++i) {
      q.mutable_data()[i] = static_cast<std::byte>(i * 37 % 256);
    }
    const ValueId values = b.graph.add_constant(name, std::move(q));
    const Dims steps = l.block == 0 ? Dims{all} : Dims{all, (width + l.block - 1) / l.block};
    Attributes attributes{{"axis", std::int64_t{l.block == 0 ? 0 : 1}}};
    if (l.block != 0) attributes["block_size"] = l.block;
    // Small ones, so that gates stay where their functions are steep.
    const ValueId scale = l.computed_scales
                              ? b.input(name + "_scale", {all})
                              : b.node("Mul", {b.weight(name + "_scale", steps), b.scalar(0.005F)});
    const ValueId matrix = b.node("DequantizeLinear", {values, scale}, attributes);
    if (l.view == std::string("Unsqueeze")) return b.node(l.view, {matrix, b.ints({0})});
    return b.node(l.view, {matrix, b.ints({l.directions, rows, columns})});
  }

  // [b, s, kUnits · directions]
  ValueId layer(ValueId x, const Layer& l) {
    const std::int64_t gates = l.op == "LSTM" ? 4 : l.op == "GRU" ? 3 : 1;
    const auto weight = [&](const char* name, bool stored, std::int64_t columns) {
      return stored ? integers(name, l, gates * kUnits, columns)
                    : b.weight(name, Dims{l.directions, gates * kUnits, columns});
    };
    Attributes attributes{{"hidden_size", kUnits}};
    if (l.directions == 2) attributes["direction"] = std::string("bidirectional");
    const ValueId steps = b.node("Transpose", {x}, {{"perm", std::vector<std::int64_t>{1, 0, 2}}});
    const ValueId y = b.node(l.op,
                             {steps, weight("w", l.w, kInputs), weight("r", l.r, kUnits),
                              b.weight("bias", Dims{l.directions, 2 * gates * kUnits})},
                             attributes);
    const ValueId texts =
        b.node("Transpose", {y}, {{"perm", std::vector<std::int64_t>{2, 0, 1, 3}}});
    return b.node("Reshape", {texts, b.ints({0, 0, -1})});
  }
  graph::Graph run(const Layer& l) {
    b.output(layer(b.input("x", {sym("b"), sym("s"), kInputs}), l));
    return optimized(b);
  }
};

const graph::Node* find(const graph::Graph& graph, const std::string& op) {
  for (const graph::Node& node : graph.nodes) {
    if (node.op == op) return &node;
  }
  return nullptr;
}

KVIK_TEST(both_weights_stay_integers) {
  for (const std::string op : {"LSTM", "GRU", "RNN"}) {
    for (const std::int64_t directions : {1, 2}) {
      for (const std::int64_t block : {0, 4}) {
        Stored m;
        const graph::Graph graph = m.run({.op = op, .directions = directions, .block = block});
        CHECK_EQ(operators(graph), "Transpose kvik." + op + " Transpose Reshape");
        const graph::Node* node = find(graph, op);
        if (node == nullptr) continue;
        for (const std::size_t i : {1U, 2U}) {
          const graph::ConstantTensor* weights = graph.constant(node->input(i));
          const graph::ConstantTensor* scale = graph.constant(node->input(6 + 2 * i));
          CHECK(weights != nullptr && weights->dtype == DType::kI8 && weights->dims.rank == 3);
          CHECK(scale != nullptr && scale->dims[0] == weights->dims[0] * weights->dims[1]);
        }
        CHECK_EQ(node->int_attr("w_axis", -1), std::int64_t{block == 0 ? 0 : 1});
        CHECK_EQ(node->int_attr("r_block", -1), block);
        CHECK_EQ(operators(optimized_without(m.b, "fuse_recurrent")),
                 "Transpose DequantizeLinear Reshape DequantizeLinear Reshape " + op +
                     " Transpose Reshape");
      }
    }
  }
}

KVIK_TEST(the_dump) {
  Stored m;
  m.b.output(m.b.node("LSTM", {m.b.input("x", {sym("s"), sym("b"), kInputs}),
                               m.integers("w", {}, 4 * kUnits, kInputs),
                               m.b.weight("r", Dims{1, 4 * kUnits, kUnits})}));
  const std::string dump = graph::dump(optimized(m.b));
  CHECK(dump.find("int8 [1, 20, 6]") != std::string::npos) << dump;
  CHECK(dump.find("kvik.LSTM(x, ") != std::string::npos) << dump;
  CHECK(dump.find("{w_axis=0, w_block=0}  float32 [s, 1, b, 5]") != std::string::npos) << dump;
}

KVIK_TEST(one_of_the_two_may_be_floats) {
  for (const bool w : {true, false}) {
    Stored m;
    const graph::Graph graph = m.run({.directions = 2, .w = w, .r = !w, .view = "Reshape"});
    CHECK_EQ(operators(graph), "Transpose kvik.LSTM Transpose Reshape");
    const graph::Node* node = find(graph, "LSTM");
    if (node == nullptr) continue;
    CHECK_EQ(node->has_attr("w_axis"), w);
    CHECK_EQ(node->has_attr("r_axis"), !w);
    CHECK_EQ(node->input(8) != graph::kNoValue, w);
    CHECK_EQ(node->input(10) != graph::kNoValue, !w);
  }
}

KVIK_TEST(an_axis_of_one_direction) {
  Stored m;
  CHECK_EQ(operators(m.run({.view = "Unsqueeze"})), "Transpose kvik.LSTM Transpose Reshape");
}

// What a matrix of integers with these scales could not say stays as it is.
KVIK_TEST(near_misses) {
  Stored other_rows;
  CHECK(find(other_rows.run({.r = false, .split = 2}), "DequantizeLinear") != nullptr)
      << "rows of the matrix are no rows of W";
  Stored computed;
  CHECK(find(computed.run({.r = false, .computed_scales = true}), "DequantizeLinear") != nullptr)
      << "scales that are computed";
  Stored half;
  const ValueId x = half.b.input("x", {sym("s"), sym("b"), kInputs});
  half.b.output(half.b.node("LSTM", {x, half.integers("w", {}, 4 * kUnits, kInputs),
                                     half.b.input("r", {1, 4 * kUnits, kUnits})}));
  CHECK(find(optimized(half.b), "DequantizeLinear") != nullptr) << "an R that is computed";
}

KVIK_TEST(layers_on_integers_are_proved) {
  for (const std::string op : {"LSTM", "GRU", "RNN"}) {
    for (const std::int64_t directions : {1, 2}) {
      Stored m;
      const ValueId ids = m.b.input("ids", {sym("b"), sym("s")}, DType::kI64);
      const ValueId x = m.b.node("Gather", {m.b.weight("embedding", Dims{11, kInputs}), ids});
      m.b.output(m.layer(x, {.op = op, .directions = directions}));
      graph::PassOptions options;
      options.assume_limits = true;
      const auto report = graph::optimize(m.b.graph, options, evaluator());
      const auto mixing = directions == 1 ? graph::Mixing::kEarlier : graph::Mixing::kWhole;
      const graph::RowProof proof =
          graph::prove_rowwise(m.b.graph, {m.b.graph.outputs[0]}, report.limits, mixing);
      CHECK(proof.rows.has_value()) << op << ": " << proof.reason;
      if (!proof.rows) continue;
      const graph::RowRecurrent& entry = proof.rows->recurrent.at(0);
      CHECK_EQ(entry.width, (op == "LSTM" ? 2 : 1) * directions * kUnits);
      const graph::Node* node = find(proof.rows->graph, "RowRecurrent");
      CHECK(node != nullptr);
      if (node == nullptr) continue;
      for (const std::size_t i : {1U, 2U}) {
        const auto* weights = proof.rows->graph.constant(node->input(i));
        CHECK(weights != nullptr && weights->dtype == DType::kI8);
        CHECK(proof.rows->graph.constant(node->input(6 + 2 * i)) != nullptr);
      }
      CHECK_EQ(node->int_attr("r_axis", -1), std::int64_t{0});
    }
  }
}

}  // namespace
}  // namespace kvik::test

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
