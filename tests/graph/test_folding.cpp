// fold_constants: what is folded, from where, and what must not be.
#include "graph/builder.h"
#include "kvik/error.h"

namespace kvik::test {
namespace {

KVIK_TEST(arithmetic_on_constants_is_computed) {
  Builder b;
  const ValueId x = b.input("x", {sym("b"), 4});
  const ValueId sum = b.node("Add", {b.weight("a", Dims{4}), b.weight("c", Dims{4})});
  b.output(b.node("Mul", {x, b.node("Exp", {sum})}));
  CHECK_EQ(operators(optimized(b)), "Mul");
  CHECK_EQ(operators(optimized_without(b, "fold_constants")), "Add Exp Mul");
}

KVIK_TEST(without_an_evaluator_only_contents_fold) {
  Builder b;
  const ValueId x = b.input("x", {sym("b"), 4});
  const ValueId sum = b.node("Add", {b.weight("a", Dims{4}), b.weight("c", Dims{4})});
  const ValueId size = b.node("Shape", {x}, {{"start", std::int64_t{1}}});
  b.output(
      b.node("Reshape", {b.node("Mul", {x, b.node("Erf", {sum})}),
                         b.node("Concat", {b.ints({-1, 2}), b.node("Div", {size, b.ints({2})})},
                                {{"axis", std::int64_t{0}}})}));
  graph::Graph graph = b.graph;
  graph::optimize(graph);
  CHECK(operators(graph).find("Erf Mul Reshape") != std::string::npos) << graph::dump(graph);
  CHECK(operators(graph).find("Shape Div") == std::string::npos) << graph::dump(graph);
}

KVIK_TEST(an_evaluator_that_fails_leaves_the_node) {
  Builder b;
  const ValueId x = b.input("x", {3});
  b.output(b.node("Mul", {x, b.node("Erf", {b.weight("a", Dims{3})})}));
  graph::Graph graph = b.graph;
  graph::optimize(graph, {},
                  [](const graph::Graph&,
                     const graph::Node&) -> std::optional<std::vector<graph::ConstantTensor>> {
                    throw Error(ErrorCode::kUnsupported, "no");
                  });
  CHECK_EQ(operators(graph), "Erf Mul");
}

KVIK_TEST(nothing_grows_out_of_bounds) {
  Builder b;
  const ValueId x = b.input("x", {sym("b"), 1, 1});
  const ValueId huge = b.node("ConstantOfShape", {b.ints({1 << 20, 1 << 20})});
  b.output(b.node("Add", {x, huge}));
  graph::Graph graph = b.graph;  // not run: the values would not fit
  graph::optimize(graph, {}, evaluator());
  CHECK_EQ(operators(graph), "ConstantOfShape Add");
}

KVIK_TEST(views_of_weights_share_their_memory) {
  Builder b;
  const ValueId x = b.input("x", {sym("b"), 32, 32});
  const ValueId w = b.weight("w", Dims{1024});
  b.output(b.node("Mul", {x, b.node("Reshape", {w, b.ints({32, 32})})}));
  const graph::Graph graph = optimized(b);
  CHECK_EQ(operators(graph), "Mul");
  CHECK(graph.constant(graph.nodes[0].input(1))->data.data() == b.graph.constant(w)->data.data());
}

KVIK_TEST(random_numbers_are_not_folded) {
  Builder b;
  const ValueId x = b.input("x", {3});
  b.output(b.node("Add", {x, b.node("RandomNormalLike", {b.weight("a", Dims{3})})}));
  graph::Graph graph = b.graph;
  graph::optimize(graph, {}, evaluator());
  CHECK_EQ(operators(graph), "RandomNormalLike Add");
}

KVIK_TEST(known_inputs_fold_what_depends_on_them) {
  Builder b;
  const ValueId x = b.input("x", {sym("b"), sym("s")});
  const ValueId mask = b.input("mask", {sym("b"), sym("s")}, DType::kI64);
  const ValueId keep = b.node("Cast", {mask}, {{"to", std::int64_t{9}}});
  b.output(b.node("Relu", {b.node("Where", {keep, x, b.scalar(-1e9F)})}));
  graph::Graph graph = b.graph;
  graph::PassOptions options;
  options.known.emplace(mask, Expr(1));
  graph::optimize(graph, options, evaluator());
  CHECK_EQ(operators(graph), "Relu");
}

}  // namespace
}  // namespace kvik::test

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
