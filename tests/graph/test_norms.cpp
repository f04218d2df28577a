// fuse_layer_norm and fuse_rms_norm: spellings that fuse, near misses that do not.
#include "graph/builder.h"

namespace kvik::test {
namespace {

enum class Square { kMul, kPow };
enum class Quotient { kDivSqrt, kMulReciprocal, kMulInverse, kMulPow, kDivPow };

struct Spelling {
  bool centred = true;
  Square square = Square::kMul;
  Quotient quotient = Quotient::kDivSqrt;
  bool flipped = false;  // operands of commutative nodes in the other order
  std::vector<std::int64_t> axes{-1};
};

ValueId commutative(Builder& b, const char* op, ValueId x, ValueId y, bool flipped) {
  return flipped ? b.node(op, {y, x}) : b.node(op, {x, y});
}

ValueId quotient(Builder& b, ValueId d, ValueId variance, const Spelling& s) {
  switch (s.quotient) {
    case Quotient::kDivSqrt: return b.node("Div", {d, b.node("Sqrt", {variance})});
    case Quotient::kDivPow: return b.node("Div", {d, b.node("Pow", {variance, b.scalar(0.5F)})});
    case Quotient::kMulReciprocal: {
      const ValueId inverse = b.node("Reciprocal", {b.node("Sqrt", {variance})});
      return commutative(b, "Mul", d, inverse, s.flipped);
    }
    case Quotient::kMulInverse: {
      const ValueId inverse = b.node("Div", {b.scalar(1.0F), b.node("Sqrt", {variance})});
      return commutative(b, "Mul", d, inverse, s.flipped);
    }
    case Quotient::kMulPow: {
      const ValueId inverse = b.node("Pow", {variance, b.scalar(-0.5F)});
      return commutative(b, "Mul", d, inverse, s.flipped);
    }
  }
  return graph::kNoValue;
}

ValueId squared(Builder& b, ValueId d, const Spelling& s) {
  return s.square == Square::kMul ? b.node("Mul", {d, d}) : b.node("Pow", {d, b.scalar(2.0F)});
}

// x normalised in the given spelling, without scale and bias.
ValueId normalised(Builder& b, ValueId x, const Spelling& s) {
  ValueId d = x;
  if (s.centred) d = b.node("Sub", {x, b.node("ReduceMean", {x, b.ints(s.axes)})});
  const ValueId mean = b.node("ReduceMean", {squared(b, d, s), b.ints(s.axes)});
  return quotient(b, d, commutative(b, "Add", mean, b.scalar(1e-5F), s.flipped), s);
}

std::vector<Spelling> spellings(bool centred) {
  std::vector<Spelling> all;
  for (const Square square : {Square::kMul, Square::kPow}) {
    for (const Quotient q : {Quotient::kDivSqrt, Quotient::kMulReciprocal, Quotient::kMulInverse,
                             Quotient::kMulPow, Quotient::kDivPow}) {
      for (const bool flipped : {false, true}) all.push_back({centred, square, q, flipped, {-1}});
    }
  }
  all.push_back({centred, Square::kMul, Quotient::kDivSqrt, false, {2}});
  return all;
}

Builder with_input(ValueId* x) {
  Builder b;
  *x = b.input("x", {sym("b"), sym("s"), 16});
  return b;
}

KVIK_TEST(layer_norm_in_every_spelling) {
  for (const Spelling& s : spellings(true)) {
    ValueId x;
    Builder b = with_input(&x);
    const ValueId scaled =
        commutative(b, "Mul", normalised(b, x, s), b.weight("g", Dims{16}), s.flipped);
    b.output(commutative(b, "Add", scaled, b.weight("h", Dims{16}), s.flipped));
    check_fuses(b, "fuse_layer_norm", "LayerNormalization", "scale and bias");
  }
}

KVIK_TEST(rms_norm_in_every_spelling) {
  for (const Spelling& s : spellings(false)) {
    ValueId x;
    Builder b = with_input(&x);
    b.output(commutative(b, "Mul", normalised(b, x, s), b.weight("g", Dims{1, 1, 16}), s.flipped));
    check_fuses(b, "fuse_rms_norm", "RMSNormalization", "scale");
  }
}

KVIK_TEST(layer_norm_dump_before_and_after) {
  ValueId x;
  Builder b = with_input(&x);
  const ValueId y = normalised(b, x, {});
  b.output(b.node("Add", {b.node("Mul", {y, b.weight("g", Dims{16})}), b.weight("h", Dims{16})}));
  CHECK_EQ(graph::dump(b.graph),
           "graph 'test': x float32 [b, s, 16]\n"
           "  v1  = ReduceMean(x, [-1])\n"
           "  v2  = Sub(x, v1)\n"
           "  v3  = Mul(v2, v2)\n"
           "  v5  = ReduceMean(v3, [-1])\n"
           "  v7  = Add(v5, 1e-05)\n"
           "  v8  = Sqrt(v7)\n"
           "  v9  = Div(v2, v8)\n"
           "  v10 = Mul(v9, g float32 [16])\n"
           "  y   = Add(v10, h float32 [16])\n"
           "  return y\n");
  CHECK_EQ(graph::dump(optimized(b)),
           "graph 'test': x float32 [b, s, 16]\n"
           "  y = LayerNormalization(x, g float32 [16], h float32 [16]) {axis=-1, epsilon=1e-05}"
           "  float32 [b, s, 16]\n"
           "  return y\n");
}

KVIK_TEST(norms_without_scale_or_bias) {
  ValueId x;
  Builder plain = with_input(&x);
  plain.output(normalised(plain, x, {}));
  check_fuses(plain, "fuse_layer_norm", "LayerNormalization", "no scale, no bias");
  Builder biased = with_input(&x);
  biased.output(biased.node("Add", {normalised(biased, x, {}), biased.weight("h", Dims{16})}));
  check_fuses(biased, "fuse_layer_norm", "LayerNormalization", "bias alone");
}

KVIK_TEST(near_misses_of_norms_stay) {
  ValueId x;
  {  // over another axis
    Builder b = with_input(&x);
    b.output(normalised(b, x, {true, Square::kMul, Quotient::kDivSqrt, false, {1}}));
    check_lacks(b, "Normalization", "axis 1");
  }
  {  // epsilon outside of the root
    Builder b = with_input(&x);
    const ValueId mean = b.node("ReduceMean", {b.node("Mul", {x, x}), b.ints({-1})});
    const ValueId root = b.node("Add", {b.node("Sqrt", {mean}), b.scalar(1e-5F)});
    b.output(b.node("Div", {x, root}));
    check_lacks(b, "Normalization", "epsilon added to the root");
  }
  {  // the mean of one value, the quotient of another
    Builder b = with_input(&x);
    const ValueId z = b.input("z", {sym("b"), sym("s"), 16});
    const ValueId mean = b.node("ReduceMean", {b.node("Mul", {x, x}), b.ints({-1})});
    b.output(b.node("Div", {z, b.node("Sqrt", {b.node("Add", {mean, b.scalar(1e-5F)})})}));
    check_lacks(b, "Normalization", "another numerator");
  }
  {  // cubes, not squares
    Builder b = with_input(&x);
    const ValueId cubes = b.node("Abs", {b.node("Pow", {x, b.scalar(3.0F)})});
    const ValueId mean = b.node("ReduceMean", {cubes, b.ints({-1})});
    b.output(b.node("Div", {x, b.node("Sqrt", {b.node("Add", {mean, b.scalar(1e-5F)})})}));
    check_lacks(b, "Normalization", "cubes");
  }
  {  // the root is an output of its own
    Builder b = with_input(&x);
    const ValueId mean = b.node("ReduceMean", {b.node("Mul", {x, x}), b.ints({-1})});
    const ValueId root = b.node("Sqrt", {b.node("Add", {mean, b.scalar(1e-5F)})});
    b.output(b.node("Div", {x, root}));
    b.output(root, "root");
    check_lacks(b, "Normalization", "the root is used elsewhere");
  }
  {  // the mean is not kept as an axis of 1
    Builder b;
    const ValueId square = b.input("x", {8, 8});
    const ValueId mean = b.node("ReduceMean", {b.node("Mul", {square, square}), b.ints({-1})},
                                {{"keepdims", std::int64_t{0}}});
    b.output(b.node("Div", {square, b.node("Sqrt", {b.node("Add", {mean, b.scalar(1e-5F)})})}));
    check_lacks(b, "Normalization", "keepdims = 0 divides columns");
  }
}

KVIK_TEST(a_scale_per_position_is_not_absorbed) {
  ValueId x;
  Builder b;
  x = b.input("x", {sym("b"), 16, 16});
  b.output(b.node("Mul", {normalised(b, x, {false}), b.weight("g", Dims{16, 1})}));
  CHECK_EQ(operators(optimized(b)), "RMSNormalization Mul");
}

}  // namespace
}  // namespace kvik::test

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
