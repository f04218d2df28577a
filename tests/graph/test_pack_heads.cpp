// pack_heads: Attention reads and writes heads where products have them, and when it must not.
#include "graph/builder.h"

namespace kvik::test {
namespace {

constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kDim = 4;

ValueId swapped(Builder& b, ValueId x) {
  return b.node("Transpose", {x}, {{"perm", std::vector<std::int64_t>{0, 2, 1, 3}}});
}

// [b, length, heads · kDim] as heads [b, heads, length, kDim].
ValueId heads_of(Builder& b, ValueId x, std::int64_t heads) {
  return swapped(b, b.node("Reshape", {x, b.ints({0, 0, heads, kDim})}));
}

struct Packed {
  ValueId q, k, v;  // heads of products
};

Packed packed(Builder& b, std::int64_t kv_heads) {
  const Expr kv = kv_heads * kDim;
  return {heads_of(b, b.input("q", {sym("b"), sym("s"), kHeads * kDim}), kHeads),
          heads_of(b, b.input("k", {sym("b"), sym("t"), kv}), kv_heads),
          heads_of(b, b.input("v", {sym("b"), sym("t"), kv}), kv_heads)};
}

ValueId joined(Builder& b, ValueId heads) {
  return b.node("Reshape", {swapped(b, heads), b.ints({0, 0, kHeads * kDim})});
}

KVIK_TEST(heads_are_read_where_products_left_them) {
  for (const std::int64_t kv_heads : {kHeads, std::int64_t{1}}) {
    Builder b;
    const Packed in = packed(b, kv_heads);
    const ValueId mask = b.input("mask", {sym("s"), sym("t")});
    b.output(joined(b, b.node("Attention", {in.q, in.k, in.v, mask})));
    const graph::Graph graph = optimized(b);
    CHECK_EQ(operators(graph), "Attention");
    CHECK_EQ(graph.nodes[0].int_attr("q_num_heads", 0), kHeads);
    CHECK_EQ(graph.nodes[0].int_attr("kv_num_heads", 0), kv_heads);
    CHECK(operators(optimized_without(b, "pack_heads")).ends_with("Attention Transpose Reshape"));
  }
}

KVIK_TEST(one_query_head_and_values_of_another_size) {
  Builder b;
  const ValueId q = heads_of(b, b.input("q", {sym("b"), sym("s"), kHeads * kDim}), kHeads);
  const ValueId k = heads_of(b, b.input("k", {sym("b"), sym("t"), kHeads * kDim}), kHeads);
  const ValueId v = swapped(b, b.node("Reshape", {b.input("v", {sym("b"), sym("t"), kHeads * 3}),
                                                  b.ints({0, 0, kHeads, 3})}));
  const ValueId y = swapped(b, b.node("Attention", {q, k, v}));
  b.output(b.node("Reshape", {y, b.ints({0, 0, kHeads * 3})}));
  CHECK_EQ(operators(optimized(b)), "Attention");
}

// What makes the heads is no Reshape that would cancel: still no Transpose, and no computed shape.
KVIK_TEST(heads_that_are_normalised_one_by_one) {
  Builder b;
  Packed in = packed(b, kHeads);
  const ValueId q = b.input("heads", {sym("b"), sym("s"), kHeads, kDim});
  in.q = swapped(b, b.node("Relu", {q}));
  b.output(joined(b, b.node("Attention", {in.q, in.k, in.v})));
  const graph::Graph graph = optimized(b);
  CHECK_EQ(operators(graph), "Relu Reshape Attention");
  for (const graph::Node& node : graph.nodes) {
    if (!node.is("Attention")) continue;
    CHECK_EQ(node.name, b.graph.nodes[b.graph.nodes.size() - 3].name);
  }
}

KVIK_TEST(heads_that_others_need_stay) {
  const std::string stays = "Attention Transpose";
  const auto check = [&](Builder& b, ValueId heads, const char* what) {
    b.output(joined(b, heads));
    CHECK(operators(optimized(b)).find(stays) != std::string::npos) << what;
  };
  {
    Builder b;
    const Packed in = packed(b, kHeads);
    const ValueId y = b.node("Attention", {in.q, in.k, in.v});
    b.output(y, "heads");
    check(b, y, "an output of the graph");
  }
  {
    Builder b;
    const Packed in = packed(b, kHeads);
    const ValueId k = b.input("heads", {sym("b"), kHeads, sym("t"), kDim});
    check(b, b.node("Attention", {in.q, k, in.v}), "keys that no Transpose makes");
  }
  {
    Builder b;
    const Packed in = packed(b, kHeads);
    const ValueId one = heads_of(b, b.input("one", {sym("b"), sym("t"), kDim}), 1);
    b.output(joined(b, b.node("Attention", {in.q, in.k, one})));
    graph::Graph graph = b.graph;
    graph::optimize(graph);  // and not run: these heads do not fit together
    CHECK(operators(graph).find("Attention Transpose") != std::string::npos) << operators(graph);
  }
  {
    Builder b;
    const Packed in = packed(b, kHeads);
    const ValueId past = b.input("past", {sym("b"), kHeads, 3, kDim});
    const ValueId y = b.node("Attention", {in.q, in.k, in.v, graph::kNoValue, past, past});
    check(b, y, "a cache");
  }
}

}  // namespace
}  // namespace kvik::test

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
