// merge_views, remove_noops, eliminate_common, simplify_shapes, and random chains of views.
#include "graph/builder.h"
#include "kvik/error.h"

namespace kvik::test {
namespace {

ValueId transpose(Builder& b, ValueId x, std::vector<std::int64_t> perm) {
  return b.node("Transpose", {x}, {{"perm", std::move(perm)}});
}

KVIK_TEST(transposes_compose) {
  Builder b;
  const ValueId x = b.input("x", {sym("b"), sym("s"), 2, 4});
  b.output(transpose(b, transpose(b, x, {0, 2, 1, 3}), {0, 1, 3, 2}));
  CHECK_EQ(graph::dump(optimized(b)),
           "graph 'test': x float32 [b, s, 2, 4]\n"
           "  y = Transpose(x) {perm=[0, 2, 3, 1]}  float32 [b, 2, 4, s]\n"
           "  return y\n");
}

// The exporters' spelling of a transposition of the last two axes: flattened, swapped, unflattened.
KVIK_TEST(a_transpose_hidden_between_reshapes) {
  Builder b;
  const ValueId x = b.input("x", {sym("b"), 2, sym("s"), 4});
  const ValueId s = b.node("Shape", {x}, {{"start", std::int64_t{2}}, {"end", std::int64_t{3}}});
  const ValueId batch =
      b.node("Shape", {x}, {{"start", std::int64_t{0}}, {"end", std::int64_t{1}}});
  const ValueId flat =
      b.node("Concat", {b.ints({-1}), s, b.ints({4})}, {{"axis", std::int64_t{0}}});
  const ValueId full =
      b.node("Concat", {batch, b.ints({2}), b.ints({4}), s}, {{"axis", std::int64_t{0}}});
  b.output(b.node("Reshape", {transpose(b, b.node("Reshape", {x, flat}), {0, 2, 1}), full}));
  CHECK_EQ(operators(optimized(b)), "Transpose");
  CHECK_EQ(optimized(b).nodes[0].ints_attr("perm").value(),
           (std::vector<std::int64_t>{0, 1, 3, 2}));
}

// Two axes of one size: only their identities tell the transposition from nothing at all.
KVIK_TEST(axes_of_equal_size_are_told_apart) {
  Builder b;
  const ValueId x = b.input("x", {sym("b"), 16});
  const ValueId square = b.node("Reshape", {x, b.ints({-1, 4, 4})});
  b.output(b.node("Reshape", {transpose(b, square, {0, 2, 1}), b.ints({-1, 16})}));
  CHECK_EQ(operators(optimized(b)), "Reshape Transpose Reshape");
}

KVIK_TEST(reshapes_that_cancel) {
  Builder b;
  const ValueId x = b.input("x", {sym("b"), sym("s"), 8});
  const ValueId flat = b.node("Reshape", {x, b.ints({-1, 8})});
  b.output(b.node("Relu", {b.node("Reshape", {flat, b.node("Shape", {x})})}));
  CHECK_EQ(operators(optimized(b)), "Relu");
  CHECK_EQ(operators(optimized_without(b, "merge_views")),
           "Reshape Shape Shape Concat Reshape Relu");
}

// Random chains: whatever the passes make of them, the elements stay where they belong.
KVIK_TEST(random_chains_of_views_keep_their_elements) {
  Random random(11);
  for (int round = 0; round < 150; ++round) {
    Builder b;
    std::vector<std::int64_t> dims{2, 3, 4, 4};
    ValueId v = b.input("x", {2, 3, 4, 4});
    for (int step = 0; step < 5; ++step) {
      if (random.integer(0, 1) == 0) {
        std::vector<std::int64_t> perm(dims.size());
        for (std::size_t i = 0; i < perm.size(); ++i) perm[i] = static_cast<std::int64_t>(i);
        for (std::size_t i = perm.size(); i > 1; --i) {
          std::swap(
              perm[i - 1],
              perm[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(i) - 1))]);
        }
        std::vector<std::int64_t> moved;
        for (const std::int64_t axis : perm) moved.push_back(dims[static_cast<std::size_t>(axis)]);
        dims = moved;
        v = transpose(b, v, perm);
      } else {
        std::vector<std::int64_t> factors;  // any grouping of the prime factors, in order
        for (const std::int64_t dim : dims) {
          std::int64_t left = dim;
          for (const std::int64_t prime : {2, 3}) {
            for (; left % prime == 0; left /= prime) factors.push_back(prime);
          }
        }
        dims.assign(1, 1);
        for (const std::int64_t factor : factors) {
          if (random.integer(0, 1) == 0 && dims.size() < 6) dims.push_back(1);
          dims.back() *= factor;
        }
        v = b.node("Reshape", {v, b.ints(dims)});
      }
    }
    b.output(b.node("Relu", {v}));
    const graph::Graph graph = optimized(b, {}, 0.0);
    CHECK(graph.nodes.size() <= b.graph.nodes.size()) << graph::dump(b.graph) << graph::dump(graph);
  }
}

KVIK_TEST(nodes_that_change_nothing) {
  Builder b;
  const ValueId x = b.input("x", {sym("b"), sym("s"), 8});
  ValueId v = b.node("Identity", {x});
  v = b.node("Cast", {v}, {{"to", std::int64_t{1}}});
  v = b.node("Slice", {v, b.ints({0}), b.ints({INT64_MAX}), b.ints({1})});
  v = b.node("Expand", {v, b.node("Shape", {x})});
  v = b.node("Concat", {v}, {{"axis", std::int64_t{0}}});
  v = b.node("Mul", {v, b.scalar(1.0F)});
  v = b.node("Add", {b.scalar(0.0F), v});
  v = b.node("Dropout", {v});
  b.output(b.node("Relu", {v}));
  CHECK_EQ(operators(optimized(b)), "Relu");
}

KVIK_TEST(nodes_that_look_as_if_they_changed_nothing) {
  Builder b;
  const ValueId x = b.input("x", {sym("b"), 8, 8});
  ValueId v = b.node("Slice", {x, b.ints({-1}), b.ints({INT64_MIN}), b.ints({1}), b.ints({-1})});
  v = transpose(b, v, {0, 2, 1});
  v = b.node("Sub", {b.scalar(0.0F), v});
  v = b.node("Div", {b.scalar(1.0F), v});
  b.output(v);
  CHECK_EQ(operators(optimized(b)), "Slice Transpose Sub Div");
}

KVIK_TEST(an_enlarging_neutral_operand_stays) {
  Builder b;
  const ValueId x = b.input("x", {8});
  const std::vector<float> zeros(16, 0.0F);
  const ValueId zero =
      b.graph.add_constant("z", graph::ConstantTensor::from_floats(zeros, Dims{2, 8}));
  b.output(b.node("Add", {x, zero}));
  CHECK_EQ(operators(optimized(b)), "Add");
}

KVIK_TEST(the_name_of_an_output_survives) {
  Builder b;
  const ValueId x = b.input("x", {sym("b"), 8});
  const ValueId y = b.node("Relu", {x});
  b.output(b.node("Identity", {y}), "logits");
  const graph::Graph graph = optimized(b);
  CHECK_EQ(operators(graph), "Relu");
  CHECK_EQ(graph.value(graph.outputs[0]).name, "logits");

  Builder direct;  // an output that is an input can only be made by a node
  const ValueId input = direct.input("x", {sym("b"), 8});
  direct.output(direct.node("Identity", {input}), "same");
  CHECK_EQ(operators(optimized(direct)), "Identity");
}

KVIK_TEST(common_expressions) {
  Builder b;
  const ValueId x = b.input("x", {sym("b"), 8});
  const ValueId one = b.node("Cos", {b.node("Mul", {x, b.scalar(2.0F)})});
  const ValueId two = b.node("Cos", {b.node("Mul", {x, b.scalar(2.0F)})});
  const ValueId other = b.node("Cos", {b.node("Mul", {x, b.scalar(3.0F)})});
  b.output(b.node("Max", {b.node("Sub", {one, two}), other}));
  CHECK_EQ(operators(optimized(b)), "Mul Cos Mul Cos Sub Max");
  CHECK_EQ(operators(optimized_without(b, "eliminate_common")), "Mul Cos Mul Cos Mul Cos Sub Max");
}

KVIK_TEST(different_attributes_are_different_expressions) {
  Builder b;
  const ValueId x = b.input("x", {sym("b"), 8, 8});
  const ValueId one = b.node("Softmax", {x}, {{"axis", std::int64_t{1}}});
  const ValueId two = b.node("Softmax", {x}, {{"axis", std::int64_t{2}}});
  b.output(b.node("Sub", {one, two}));
  CHECK_EQ(operators(optimized(b)), "Softmax Softmax Sub");
}

KVIK_TEST(sizes_are_read_from_the_inputs) {
  Builder b;
  const ValueId x = b.input("x", {sym("b"), sym("s"), 8});
  const ValueId y = b.node("Relu", {transpose(b, x, {1, 0, 2})});
  b.output(b.node("Shape", {y}));
  CHECK_EQ(operators(optimized(b)), "Shape Shape Concat");
}

KVIK_TEST(an_unknown_pass_is_an_error) {
  Builder b;
  b.output(b.node("Relu", {b.input("x", {8})}));
  graph::PassOptions options;
  options.disabled.insert("fuse_nothing");
  const std::string error = thrown([&] { graph::optimize(b.graph, options); });
  CHECK(error.find("there is no graph pass 'fuse_nothing'; the passes are fold_constants") == 0)
      << error;
}

}  // namespace
}  // namespace kvik::test

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
