// fuse_linear and, where Gemm wants two axes, sink_reshapes.
#include "graph/builder.h"

namespace kvik::test {
namespace {

const std::vector<Expr>& shape() {
  static const std::vector<Expr> dims{sym("b"), sym("s"), 32};
  return dims;
}

KVIK_TEST(bias_activation_and_residual_in_one_node) {
  Builder b;
  const ValueId x = b.input("x", shape());
  const ValueId r = b.input("r", {sym("b"), sym("s"), 12});
  const ValueId product = b.node("MatMul", {x, b.weight("w", Dims{32, 12})});
  const ValueId biased = b.node("Add", {b.weight("h", Dims{12}), product});
  b.output(b.node("Add", {r, b.node("Relu", {biased})}));
  CHECK_EQ(graph::dump(b.graph),
           "graph 'test': x float32 [b, s, 32], r float32 [b, s, 12]\n"
           "  v0 = MatMul(x, w float32 [32, 12])\n"
           "  v1 = Add(h float32 [12], v0)\n"
           "  v2 = Relu(v1)\n"
           "  y  = Add(r, v2)\n"
           "  return y\n");
  CHECK_EQ(
      graph::dump(optimized(b)),
      "graph 'test': x float32 [b, s, 32], r float32 [b, s, 12]\n"
      "  y = kvik.Linear(x, w float32 [32, 12], h float32 [12], r) {activation='relu', trans_w=0}"
      "  float32 [b, s, 12]\n"
      "  return y\n");
  CHECK_EQ(operators(optimized_without(b, "fuse_linear")), "MatMul Add Relu Add");
}

KVIK_TEST(every_activation) {
  const std::pair<const char*, const char*> activations[] = {{"Relu", "relu"},
                                                             {"Tanh", "tanh"},
                                                             {"Sigmoid", "sigmoid"},
                                                             {"Swish", "silu"},
                                                             {"Gelu", "gelu"}};
  for (const auto& [op, name] : activations) {
    Builder b;
    const ValueId x = b.input("x", shape());
    b.output(b.node(op, {b.node("MatMul", {x, b.weight("w", Dims{32, 12})})}));
    const graph::Graph graph = optimized(b);
    CHECK_EQ(operators(graph), "kvik.Linear") << op;
    CHECK_EQ(graph.nodes[0].string_attr("activation", ""), name);
  }
}

KVIK_TEST(transposed_weights_are_not_copied) {
  Builder b;
  const ValueId x = b.input("x", shape());
  const ValueId w = b.weight("w", Dims{12, 32});
  const ValueId wt = b.node("Transpose", {w}, {{"perm", std::vector<std::int64_t>{1, 0}}});
  b.output(b.node("MatMul", {x, wt}));
  const graph::Graph graph = optimized(b);
  CHECK_EQ(operators(graph), "kvik.Linear");
  CHECK_EQ(graph.nodes[0].int_attr("trans_w", -1), 1);
  CHECK(graph.constant(graph.nodes[0].input(1))->data.data() == b.graph.constant(w)->data.data());
}

KVIK_TEST(gemm_between_reshapes) {
  for (const std::int64_t transposed : {0, 1}) {
    Builder b;
    const ValueId x = b.input("x", shape());
    const ValueId rows = b.node("Reshape", {x, b.ints({-1, 32})});
    const ValueId w = b.weight("w", transposed != 0 ? Dims{12, 32} : Dims{32, 12});
    const ValueId product =
        b.node("Gemm", {rows, w, b.weight("h", Dims{12})}, {{"transB", transposed}});
    const ValueId lead =
        b.node("Shape", {x}, {{"start", std::int64_t{0}}, {"end", std::int64_t{2}}});
    const ValueId target = b.node("Concat", {lead, b.ints({12})}, {{"axis", std::int64_t{0}}});
    const ValueId back = b.node("Reshape", {b.node("Tanh", {product}), target});
    b.output(b.node("Add", {back, b.input("r", {sym("b"), sym("s"), 12})}));
    const graph::Graph graph = optimized(b);
    CHECK_EQ(operators(graph), "kvik.Linear");
    CHECK_EQ(graph.nodes[0].int_attr("trans_w", -1), transposed);
    CHECK(operators(optimized_without(b, "sink_reshapes")) != "kvik.Linear");
  }
}

// The heads of an attention are joined and flattened in one Reshape, which can't move below the
// product: the one that follows moves above it, and the residual finds its place.
KVIK_TEST(gemm_after_joined_heads) {
  Builder b;
  const ValueId heads = b.input("heads", {sym("b"), 4, sym("s"), 8});
  const ValueId by_token =
      b.node("Transpose", {heads}, {{"perm", std::vector<std::int64_t>{0, 2, 1, 3}}});
  const ValueId rows = b.node("Reshape", {by_token, b.ints({-1, 32})});
  const ValueId product = b.node("Gemm", {rows, b.weight("w", Dims{32, 12})});
  const ValueId r = b.input("r", {sym("b"), sym("s"), 12});
  const ValueId back = b.node("Reshape", {product, b.node("Shape", {r})});
  b.output(b.node("Add", {back, r}));
  CHECK_EQ(operators(optimized(b)), "Transpose Shape Concat Reshape kvik.Linear");
}

KVIK_TEST(two_projections_into_one_residual) {
  Builder b;
  const ValueId x = b.input("x", shape());
  const ValueId a = b.node("MatMul", {x, b.weight("w", Dims{32, 32})});
  const ValueId c = b.node("MatMul", {x, b.weight("u", Dims{32, 32})});
  b.output(b.node("Add", {x, b.node("Add", {a, c})}));
  CHECK_EQ(operators(optimized(b)), "kvik.Linear kvik.Linear Add");
}

// DequantizeLinear of int8 [k, n] with a scale per column.
ValueId dequantized(Builder& b, std::int64_t k, std::int64_t n) {
  graph::ConstantTensor q = graph::ConstantTensor::allocate(DType::kI8, Dims{k, n});
  for (std::size_t i = 0; i < q.data.size(); ++i) {
    q.mutable_data()[i] = static_cast<std::byte>(i * 37 % 256);
  }
  const ValueId values = b.graph.add_constant("q", std::move(q));
  return b.node("DequantizeLinear", {values, b.weight("s", Dims{n})}, {{"axis", std::int64_t{1}}});
}

KVIK_TEST(integer_weights_stay_integers) {
  Builder b;
  const ValueId x = b.input("x", shape());
  const ValueId product = b.node("MatMul", {x, dequantized(b, 32, 12)});
  const ValueId biased = b.node("Add", {b.weight("h", Dims{12}), product});
  b.output(b.node("Relu", {biased}));
  CHECK_EQ(graph::dump(optimized(b, {}, 2e-4)),
           "graph 'test': x float32 [b, s, 32]\n"
           "  y = kvik.Linear(x, q int8 [32, 12], h float32 [12], _, s float32 [12]) "
           "{activation='relu', axis=1, block=0, trans_w=0}  float32 [b, s, 12]\n"
           "  return y\n");
  CHECK_EQ(operators(optimized_without(b, "fuse_linear")), "DequantizeLinear MatMul Add Relu");
}

KVIK_TEST(a_transposed_matrix_of_integers) {
  Builder b;
  const ValueId x = b.input("x", shape());
  const ValueId w = b.node("Transpose", {dequantized(b, 12, 32)});
  b.output(b.node("MatMul", {x, w}));
  const graph::Graph graph = optimized(b, {}, 2e-4);
  CHECK_EQ(operators(graph), "kvik.Linear");
  CHECK_EQ(graph.nodes[0].int_attr("trans_w", -1), 1);
  CHECK_EQ(graph.nodes[0].int_attr("axis", -1), 1);  // of the matrix as it is stored
}

KVIK_TEST(integers_with_computed_scales_are_no_weights) {
  Builder b;
  const ValueId x = b.input("x", shape());
  const ValueId q =
      b.graph.add_constant("q", graph::ConstantTensor::allocate(DType::kI8, Dims{32, 12}));
  const ValueId w = b.node("DequantizeLinear", {q, b.input("s", {12})});
  b.output(b.node("MatMul", {x, w}));
  CHECK_EQ(operators(optimized(b)), "DequantizeLinear MatMul");
}

KVIK_TEST(look_ups_of_tokens_and_of_integers) {
  const auto look_up = [](bool integers, const char* index) {
    Builder b;
    const ValueId ids = b.input("ids", {sym("b"), sym("s")}, DType::kI64);
    const ValueId table = integers ? dequantized(b, 20, 6) : b.weight("table", Dims{20, 6});
    ValueId at = ids;
    if (std::string(index) == "positions") {
      const ValueId length =
          b.node("Shape", {ids}, {{"start", std::int64_t{1}}, {"end", std::int64_t{2}}});
      at = b.node("Range", {b.ints({0}), length, b.ints({1})});
    }
    b.output(b.node("Gather", {table, at}));
    return operators(optimized(b));
  };
  CHECK_EQ(look_up(false, "tokens"), "kvik.Embedding");
  CHECK_EQ(look_up(true, "tokens"), "kvik.Embedding");
  CHECK(look_up(true, "positions").ends_with("kvik.Embedding"));
  CHECK(look_up(false, "positions").ends_with(" Gather")) << "a table of positions";
}

KVIK_TEST(near_misses_of_linear) {
  {
    Builder b;
    const ValueId x = b.input("x", shape());
    const ValueId product = b.node("MatMul", {x, b.weight("w", Dims{32, 12})});
    b.output(b.node("Relu", {product}));
    b.output(product, "raw");
    CHECK_EQ(operators(optimized(b)), "kvik.Linear Relu");
  }
  {
    Builder b;
    const ValueId x = b.input("x", shape());
    const ValueId product = b.node("MatMul", {x, b.weight("w", Dims{32, 12})});
    b.output(b.node("Add", {product, b.input("r", {sym("s"), 12})}));  // broadcast over the batch
    CHECK_EQ(operators(optimized(b)), "kvik.Linear Add");
  }
  {
    Builder b;
    const ValueId x = b.input("x", {sym("b"), 12, 32});
    const ValueId product = b.node("MatMul", {x, b.weight("w", Dims{32, 12})});
    b.output(b.node("Add", {product, b.weight("h", Dims{12, 1})}));  // a bias per row
    CHECK_EQ(operators(optimized(b)), "kvik.Linear Add");
  }
  {
    Builder b;
    const ValueId x = b.input("x", shape());
    b.output(b.node("MatMul", {x, b.weight("w", Dims{2, 32, 12})}));
    CHECK_EQ(operators(optimized(b)), "MatMul") << "a batched weight";
  }
  {
    Builder b;
    const ValueId x = b.input("x", {sym("b"), 32});
    b.output(b.node("Gemm", {x, b.weight("w", Dims{32, 12}), b.weight("h", Dims{12})},
                    {{"alpha", 0.5F}}));
    CHECK_EQ(operators(optimized(b)), "Gemm") << "alpha";
  }
  {  // bias after the activation is no bias
    Builder b;
    const ValueId x = b.input("x", shape());
    const ValueId act = b.node("Relu", {b.node("MatMul", {x, b.weight("w", Dims{32, 12})})});
    b.output(b.node("Add", {act, b.weight("h", Dims{12})}));
    CHECK_EQ(operators(optimized(b)), "kvik.Linear Add");
  }
}

}  // namespace
}  // namespace kvik::test

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
