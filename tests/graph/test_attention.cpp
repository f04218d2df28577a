// fuse_attention: softmax(Q K^T s + mask) V in many spellings, and near misses.
#include <limits>

#include "graph/builder.h"

namespace kvik::test {
namespace {

constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kDim = 4;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Inputs {
  ValueId q, k, v;  // [b, heads, s, dim]
};

Inputs inputs(Builder& b, std::int64_t kv_heads = kHeads) {
  return {b.input("q", {sym("b"), kHeads, sym("s"), kDim}),
          b.input("k", {sym("b"), kv_heads, sym("s"), kDim}),
          b.input("v", {sym("b"), kv_heads, sym("s"), kDim})};
}

ValueId transposed(Builder& b, ValueId k) {
  return b.node("Transpose", {k}, {{"perm", std::vector<std::int64_t>{0, 1, 3, 2}}});
}

ValueId attend(Builder& b, ValueId scores, ValueId v) {
  return b.node("MatMul", {b.node("Softmax", {scores}, {{"axis", std::int64_t{-1}}}), v});
}

// key <= query, as a boolean [s, s] made from the shape of q.
ValueId causal(Builder& b, ValueId q) {
  const ValueId length = b.node(
      "Squeeze", {b.node("Shape", {q}, {{"start", std::int64_t{2}}, {"end", std::int64_t{3}}})});
  const ValueId zero =
      b.graph.add_constant("zero", graph::ConstantTensor::from_ints({{0}}, Dims{}));
  const ValueId one = b.graph.add_constant("one", graph::ConstantTensor::from_ints({{1}}, Dims{}));
  const ValueId range = b.node("Range", {zero, length, one});
  const ValueId rows = b.node("Unsqueeze", {range, b.ints({1})});
  return b.node("LessOrEqual", {range, rows});
}

const graph::Node* attention_of(const graph::Graph& graph) {
  for (const graph::Node& node : graph.nodes) {
    if (node.is("Attention")) return &node;
  }
  return nullptr;
}

// Checks that the graph becomes one with an Attention, and returns it.
graph::Graph fused(const Builder& b, float scale, const char* what, float softcap = 0.0F) {
  graph::Graph graph = optimized(b);
  const graph::Node* node = attention_of(graph);
  CHECK(node != nullptr) << what << "\n" << graph::dump(graph);
  if (node != nullptr) {
    CHECK(std::fabs(node->float_attr("scale", 0.0F) - scale) <= 1e-6F * scale) << what;
    CHECK(std::fabs(node->float_attr("softcap", -1.0F) - softcap) <= 1e-6F * softcap) << what;
    CHECK_EQ(node->int_attr("is_causal", -1), 0) << what;
    CHECK(operators(graph).find("Softmax") == std::string::npos) << what;
  }
  CHECK(attention_of(optimized_without(b, "fuse_attention")) == nullptr) << what;
  return graph;
}

KVIK_TEST(plain_attention_dump) {
  Builder b;
  const Inputs in = inputs(b);
  const ValueId scores = b.node("MatMul", {in.q, transposed(b, in.k)});
  b.output(attend(b, b.node("Div", {scores, b.scalar(2.0F)}), in.v));
  const graph::Graph graph = fused(b, 0.5F, "plain");
  CHECK_EQ(graph::dump(graph),
           "graph 'test': q float32 [b, 2, s, 4], k float32 [b, 2, s, 4], v float32 [b, 2, s, 4]\n"
           "  y = Attention(q, k, v) {is_causal=0, scale=0.5, softcap=0}  float32 [b, 2, s, 4]\n"
           "  return y\n");
}

KVIK_TEST(scales_wherever_they_are) {
  {
    Builder b;
    const Inputs in = inputs(b);
    const ValueId q = b.node("Mul", {in.q, b.scalar(0.7F)});
    const ValueId k = b.node("Mul", {b.scalar(0.7F), transposed(b, in.k)});
    b.output(attend(b, b.node("MatMul", {q, k}), in.v));
    fused(b, 0.49F, "the root of the scale on q and on transposed k");
  }
  {
    Builder b;
    const Inputs in = inputs(b);
    const ValueId k = transposed(b, b.node("Div", {in.k, b.scalar(4.0F)}));
    b.output(attend(b, b.node("Mul", {b.node("MatMul", {in.q, k}), b.scalar(2.0F)}), in.v));
    fused(b, 0.5F, "on k before the transpose, and on the scores");
  }
}

KVIK_TEST(keys_transposed_in_one_step) {
  Builder b;
  const ValueId q = b.input("q", {sym("b"), kHeads, sym("s"), kDim});
  const ValueId k = b.input("k", {sym("b"), sym("t"), kHeads, kDim});
  const ValueId v = b.input("v", {sym("b"), kHeads, sym("t"), 3});
  const ValueId kt = b.node("Transpose", {k}, {{"perm", std::vector<std::int64_t>{0, 2, 3, 1}}});
  b.output(attend(b, b.node("MatMul", {q, kt}), v));
  CHECK_EQ(operators(fused(b, 1.0F, "perm 0 2 3 1")), "Transpose Attention");
}

KVIK_TEST(an_untransposed_product_gets_a_transpose) {
  Builder b;
  const ValueId q = b.input("q", {sym("b"), kHeads, sym("s"), kDim});
  const ValueId kt = b.input("kt", {sym("b"), kHeads, kDim, sym("t")});
  const ValueId v = b.input("v", {sym("b"), kHeads, sym("t"), kDim});
  b.output(attend(b, b.node("MatMul", {q, kt}), v));
  CHECK_EQ(operators(fused(b, 1.0F, "K stored transposed")), "Transpose Attention");
}

// Each way to apply a causal mask; where fills are finite the mask may be boolean, because every
// row is proved to see its own key.
KVIK_TEST(causal_masks_in_every_spelling) {
  for (const float fill : {-1e4F, -1e9F, -3.4028235e38F, -kInfinity}) {
    for (int form = 0; form < 4; ++form) {
      Builder b;
      const Inputs in = inputs(b);
      const ValueId keep = causal(b, in.q);
      const ValueId scores = b.node("MatMul", {in.q, transposed(b, in.k)});
      ValueId masked = graph::kNoValue;
      switch (form) {
        case 0: masked = b.node("Where", {keep, scores, b.scalar(fill)}); break;
        case 1: masked = b.node("Where", {b.node("Not", {keep}), b.scalar(fill), scores}); break;
        case 2:
          masked = b.node("Add", {scores, b.node("Where", {keep, b.scalar(0.0F), b.scalar(fill)})});
          break;
        default: {
          if (std::isinf(fill)) continue;  // 0 * inf
          const ValueId m = b.node("Cast", {keep}, {{"to", std::int64_t{1}}});
          const ValueId hidden = b.node("Sub", {b.scalar(1.0F), m});
          masked =
              b.node("Add", {b.node("Mul", {scores, m}), b.node("Mul", {hidden, b.scalar(fill)})});
        }
      }
      b.output(attend(b, masked, in.v));
      const graph::Graph graph = fused(b, 1.0F, "causal");
      const graph::Node* node = attention_of(graph);
      if (node == nullptr) continue;
      const bool boolean = graph.value(node->input(3)).dtype == DType::kBool;
      CHECK_EQ(boolean, form != 2) << "fill " << fill << " form " << form;
    }
  }
}

KVIK_TEST(two_masks_are_combined) {
  Builder b;
  const Inputs in = inputs(b);
  const ValueId padding = b.input("padding", {sym("b"), 1, 1, sym("s")});
  const ValueId scores = b.node("MatMul", {in.q, transposed(b, in.k)});
  const ValueId one = b.node("Where", {causal(b, in.q), scores, b.scalar(-3.4028235e38F)});
  b.output(attend(b, b.node("Add", {padding, one}), in.v));
  fused(b, 1.0F, "a boolean and an additive mask");
}

KVIK_TEST(a_mask_below_the_scale_is_scaled) {
  Builder b;
  const Inputs in = inputs(b);
  const ValueId bias = b.input("bias", {kHeads, sym("s"), sym("s")});
  const ValueId scores = b.node("Add", {b.node("MatMul", {in.q, transposed(b, in.k)}), bias});
  b.output(attend(b, b.node("Mul", {scores, b.scalar(0.25F)}), in.v));
  CHECK_EQ(operators(fused(b, 0.25F, "scaled bias")), "Mul Attention");
}

KVIK_TEST(softcap_before_the_mask) {
  Builder b;
  const Inputs in = inputs(b);
  const ValueId bias = b.input("bias", {sym("s"), sym("s")});
  ValueId scores = b.node("Mul", {b.node("MatMul", {in.q, transposed(b, in.k)}), b.scalar(0.5F)});
  scores = b.node("Tanh", {b.node("Div", {scores, b.scalar(3.0F)})});
  scores = b.node("Mul", {scores, b.scalar(3.0F)});
  b.output(attend(b, b.node("Add", {scores, bias}), in.v));
  fused(b, 0.5F, "softcap", 3.0F);
}

KVIK_TEST(nan_guard_and_dropout_after_the_softmax) {
  Builder b;
  const Inputs in = inputs(b);
  const ValueId p = b.node("Softmax", {b.node("MatMul", {in.q, transposed(b, in.k)})},
                           {{"axis", std::int64_t{3}}});
  const ValueId guarded = b.node("Where", {b.node("IsNaN", {p}), b.scalar(0.0F), p});
  b.output(b.node("MatMul", {b.node("Dropout", {guarded}), in.v}));
  fused(b, 1.0F, "guarded");
}

KVIK_TEST(one_key_head_for_all) {
  Builder b;
  const Inputs in = inputs(b, 1);
  b.output(attend(b, b.node("MatMul", {in.q, transposed(b, in.k)}), in.v));
  fused(b, 1.0F, "one key/value head, by broadcasting");
}

KVIK_TEST(a_single_head_without_an_axis) {
  Builder b;
  const ValueId q = b.input("q", {sym("b"), sym("s"), kDim});
  const ValueId k = b.input("k", {sym("b"), sym("s"), kDim});
  const ValueId kt = b.node("Transpose", {k}, {{"perm", std::vector<std::int64_t>{0, 2, 1}}});
  b.output(attend(b, b.node("MatMul", {q, kt}), b.input("v", {sym("b"), sym("s"), kDim})));
  fused(b, 1.0F, "rank 3");
}

// [batch, heads, ...] flattened to [batch * heads, ...] for a batched product, and a mask added
// between two reshapes.
KVIK_TEST(batched_products_over_flattened_heads) {
  Builder b;
  const Inputs in = inputs(b);
  const ValueId bias = b.input("bias", {sym("b"), 1, sym("s"), sym("s")});
  const ValueId s = b.node("Shape", {in.q}, {{"start", std::int64_t{2}}, {"end", std::int64_t{3}}});
  const ValueId batch =
      b.node("Shape", {in.q}, {{"start", std::int64_t{0}}, {"end", std::int64_t{1}}});
  const auto concat = [&](std::vector<ValueId> parts) {
    return b.node("Concat", std::move(parts), {{"axis", std::int64_t{0}}});
  };
  const ValueId flat = concat({b.ints({-1}), s, b.ints({kDim})});
  const ValueId q = b.node("Reshape", {in.q, flat});
  const ValueId k = b.node("Reshape", {in.k, flat});
  const ValueId v = b.node("Reshape", {in.v, flat});
  const ValueId kt = b.node("Transpose", {k}, {{"perm", std::vector<std::int64_t>{0, 2, 1}}});
  const ValueId scores =
      b.node("Reshape", {b.node("MatMul", {q, kt}), concat({batch, b.ints({kHeads}), s, s})});
  const ValueId masked =
      b.node("Reshape", {b.node("Add", {scores, bias}), concat({b.ints({-1}), s, s})});
  const ValueId y = attend(b, masked, v);
  b.output(b.node("Reshape", {y, concat({batch, b.ints({kHeads}), s, b.ints({kDim})})}));
  CHECK_EQ(operators(fused(b, 1.0F, "bmm")), "Attention");
}

KVIK_TEST(near_misses_of_attention_stay) {
  {
    Builder b;
    const Inputs in = inputs(b);
    const ValueId scores = b.node("MatMul", {in.q, transposed(b, in.k)});
    b.output(b.node("MatMul", {b.node("Softmax", {scores}, {{"axis", std::int64_t{2}}}), in.v}));
    check_lacks(b, "Attention", "softmax over the queries");
  }
  {
    Builder b;
    const Inputs in = inputs(b);
    const ValueId p = b.node("Softmax", {b.node("MatMul", {in.q, transposed(b, in.k)})});
    b.output(b.node("MatMul", {p, in.v}));
    b.output(p, "probabilities");
    check_lacks(b, "Attention", "the probabilities are an output");
  }
  {
    Builder b;
    const Inputs in = inputs(b);
    const ValueId scores = b.node("MatMul", {in.q, transposed(b, in.k)});
    const ValueId bias = b.input("bias", {3, 1, 1, 1, 1});  // adds an axis
    const ValueId p =
        b.node("Softmax", {b.node("Add", {scores, bias})}, {{"axis", std::int64_t{-1}}});
    b.output(b.node("MatMul", {p, in.v}));
    check_lacks(b, "Attention", "a mask that enlarges the scores");
  }
  {
    Builder b;
    const Inputs in = inputs(b);
    const ValueId scores = b.node("MatMul", {in.q, transposed(b, in.k)});
    const ValueId keep = b.input("keep", {sym("s"), sym("s")}, DType::kBool);
    b.output(attend(b, b.node("Where", {keep, scores, b.scalar(-5.0F)}), in.v));
    check_lacks(b, "Attention", "a fill that hides nothing");
  }
  {  // a row may be hidden: its average over all keys would change
    Builder b;
    const Inputs in = inputs(b);
    const ValueId scores = b.node("MatMul", {in.q, transposed(b, in.k)});
    const ValueId keep = b.input("keep", {sym("s"), sym("s")}, DType::kBool);
    b.output(attend(b, b.node("Where", {keep, scores, b.scalar(-1e4F)}), in.v));
    check_lacks(b, "Attention", "a small fill under an unknown mask");
  }
  {
    Builder b;
    const Inputs in = inputs(b);
    const ValueId bias = b.input("bias", {sym("s"), sym("s")});
    ValueId scores = b.node("Add", {b.node("MatMul", {in.q, transposed(b, in.k)}), bias});
    scores = b.node("Mul", {b.node("Tanh", {scores}), b.scalar(3.0F)});
    b.output(attend(b, scores, in.v));
    check_lacks(b, "Attention", "a mask inside of the softcap");
  }
  {
    Builder b;
    const Inputs in = inputs(b);
    const ValueId scale = b.input("scale", {kHeads, 1, 1});
    const ValueId scores = b.node("MatMul", {in.q, transposed(b, in.k)});
    b.output(attend(b, b.node("Mul", {scores, scale}), in.v));
    check_lacks(b, "Attention", "a scale that is computed");
  }
}

// A finite fill under a mask that may hide whole rows keeps their average: additive, not boolean.
KVIK_TEST(rows_that_may_be_hidden_keep_their_average) {
  Builder b;
  const Inputs in = inputs(b);
  const ValueId scores = b.node("MatMul", {in.q, transposed(b, in.k)});
  const ValueId visible = b.input("visible", {sym("b"), 1, sym("s"), sym("s")});
  const ValueId keep = b.node("Greater", {visible, b.scalar(1.2F)});  // one in five
  b.output(attend(b, b.node("Where", {keep, scores, b.scalar(-3.4028235e38F)}), in.v));
  const graph::Graph graph = fused(b, 1.0F, "additive");
  const graph::Node* node = attention_of(graph);
  CHECK(node != nullptr && graph.value(node->input(3)).dtype == DType::kF32);
}

}  // namespace
}  // namespace kvik::test

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
