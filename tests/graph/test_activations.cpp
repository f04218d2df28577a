// fuse_gelu, fuse_silu and fuse_silu_mul.
#include "graph/builder.h"

namespace kvik::test {
namespace {

const std::vector<Expr>& shape() {
  static const std::vector<Expr> dims{sym("b"), sym("s"), 8};
  return dims;
}

ValueId mul(Builder& b, ValueId x, ValueId y) {
  return b.node("Mul", {x, y});
}
ValueId mul(Builder& b, ValueId x, float c) {
  return b.node("Mul", {b.scalar(c), x});
}

// 1 + erf(x / sqrt 2)
ValueId erf_gate(Builder& b, ValueId x, bool divide) {
  const ValueId u = divide ? b.node("Div", {x, b.scalar(1.4142135F)}) : mul(b, x, 0.70710677F);
  return b.node("Add", {b.node("Erf", {u}), b.scalar(1.0F)});
}

KVIK_TEST(exact_gelu_in_every_association) {
  for (int form = 0; form < 6; ++form) {
    for (const bool divide : {false, true}) {
      Builder b;
      const ValueId x = b.input("x", shape());
      const ValueId g = erf_gate(b, x, divide);
      ValueId y = graph::kNoValue;
      switch (form) {
        case 0: y = mul(b, mul(b, x, 0.5F), g); break;
        case 1: y = mul(b, mul(b, x, g), 0.5F); break;
        case 2: y = mul(b, x, mul(b, g, 0.5F)); break;
        case 3: y = mul(b, mul(b, g, 0.5F), x); break;
        case 4: y = b.node("Div", {mul(b, x, g), b.scalar(2.0F)}); break;
        default: {  // x * (erf / 2 + 1/2)
          const ValueId u = mul(b, x, 0.70710677F);
          y = mul(b, x, b.node("Add", {mul(b, b.node("Erf", {u}), 0.5F), b.scalar(0.5F)}));
        }
      }
      b.output(y);
      const graph::Graph fused = optimized(b);
      CHECK_EQ(graph::dump(fused),
               "graph 'test': x float32 [b, s, 8]\n"
               "  y = Gelu(x) {approximate='none'}  float32 [b, s, 8]\n"
               "  return y\n")
          << "form " << form;
    }
  }
}

ValueId cube(Builder& b, ValueId x, int form) {
  switch (form) {
    case 0: return b.node("Pow", {x, b.scalar(3.0F)});
    case 1: return mul(b, mul(b, x, x), x);
    default: return mul(b, x, b.node("Pow", {x, b.scalar(2.0F)}));
  }
}

// sqrt(2/pi) (x + 0.044715 x^3), in forms that exporters emit.
ValueId tanh_argument(Builder& b, ValueId x, int form) {
  if (form == 3) {  // c x (1 + 0.044715 x x)
    const ValueId inner = mul(b, mul(b, x, 0.044715F), x);
    return mul(b, mul(b, x, 0.7978846F), b.node("Add", {b.scalar(1.0F), inner}));
  }
  return mul(b, b.node("Add", {x, mul(b, cube(b, x, form), 0.044715F)}), 0.7978845834732056F);
}

KVIK_TEST(tanh_gelu_in_every_spelling) {
  for (int form = 0; form < 4; ++form) {
    Builder b;
    const ValueId x = b.input("x", shape());
    const ValueId gate =
        b.node("Add", {b.scalar(1.0F), b.node("Tanh", {tanh_argument(b, x, form)})});
    b.output(mul(b, mul(b, x, 0.5F), gate));
    check_fuses(b, "fuse_gelu", "Gelu", "tanh");
    CHECK_EQ(optimized(b).nodes[0].string_attr("approximate", ""), "tanh");
  }
}

KVIK_TEST(near_misses_of_gelu_stay) {
  {
    Builder b;
    const ValueId x = b.input("x", shape());
    b.output(
        mul(b, mul(b, x, 0.5F), b.node("Add", {b.node("Erf", {mul(b, x, 0.7F)}), b.scalar(1.0F)})));
    check_lacks(b, "Gelu", "another constant in erf");
  }
  {
    Builder b;
    const ValueId x = b.input("x", shape());
    b.output(mul(b, mul(b, x, 0.25F), erf_gate(b, x, false)));
    check_lacks(b, "Gelu", "a quarter");
  }
  {
    Builder b;
    const ValueId x = b.input("x", shape());
    const ValueId z = b.input("z", shape());
    b.output(mul(b, mul(b, z, 0.5F), erf_gate(b, x, false)));
    check_lacks(b, "Gelu", "two different operands");
  }
  {
    Builder b;
    const ValueId x = b.input("x", shape());
    const ValueId gate = erf_gate(b, x, false);
    b.output(mul(b, mul(b, x, 0.5F), gate));
    b.output(gate, "gate");
    check_lacks(b, "Gelu", "the gate is an output");
  }
  {
    Builder b;
    const ValueId x = b.input("x", shape());
    b.output(mul(b, x, b.node("Sigmoid", {mul(b, x, 1.702F)})));
    check_lacks(b, "Gelu", "the sigmoid form");
    check_lacks(b, "Swish", "the sigmoid form");
  }
}

KVIK_TEST(silu_from_both_forms) {
  Builder product;
  ValueId x = product.input("x", shape());
  product.output(product.node("Mul", {product.node("Sigmoid", {x}), x}));
  check_fuses(product, "fuse_silu", "Swish", "x * sigmoid(x)");
  Builder quotient;
  x = quotient.input("x", shape());
  const ValueId exp = quotient.node("Exp", {quotient.node("Neg", {x})});
  quotient.output(quotient.node("Div", {x, quotient.node("Add", {exp, quotient.scalar(1.0F)})}));
  check_fuses(quotient, "fuse_silu", "Swish", "x / (1 + exp(-x))");
}

KVIK_TEST(gated_silu) {
  Builder b;
  const ValueId gate = b.input("gate", shape());
  const ValueId up = b.input("up", shape());
  b.output(b.node("Mul", {up, b.node("Mul", {gate, b.node("Sigmoid", {gate})})}));
  check_fuses(b, "fuse_silu_mul", "kvik.SiluMul", "up * silu(gate)");
  CHECK(optimized(b).nodes[0].inputs == b.graph.inputs);
}

KVIK_TEST(a_broadcast_factor_is_not_gated_silu) {
  Builder b;
  const ValueId gate = b.input("gate", shape());
  const ValueId up = b.input("up", {8});
  b.output(b.node("Mul", {up, b.node("Mul", {gate, b.node("Sigmoid", {gate})})}));
  CHECK_EQ(operators(optimized(b)), "Swish Mul");
}

}  // namespace
}  // namespace kvik::test

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
