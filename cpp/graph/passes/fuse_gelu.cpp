// fuse_gelu: x * (1/2) * (1 + erf(x / sqrt 2)) and its tanh approximation
//   x * (1/2) * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))
// become Gelu, however products are associated, powers are spelled and constants are distributed.
// The sigmoid form x * sigmoid(1.702 x) is another function and stays.
#include <cmath>
#include <map>

#include "graph/passes/match.h"
#include "graph/passes/passes.h"

namespace kvik::graph {

namespace {

constexpr double kSqrtHalf = 0.70710678118654752440;
constexpr double kSqrtTwoOverPi = 0.79788456080286535588;
constexpr double kCubic = 0.044715;
constexpr int kMaxDepth = 6;

using Polynomial = std::map<int, double>;  // exponent -> coefficient

Polynomial multiply(const Polynomial& a, const Polynomial& b) {
  Polynomial out;
  for (const auto& [i, x] : a) {
    for (const auto& [j, y] : b) out[i + j] += x * y;
  }
  return out;
}

// v as a polynomial of the value x, up to degree 3; nothing where it is something else.
std::optional<Polynomial> polynomial_in(const Rewriter& r, ValueId v, ValueId x, int depth = 0) {
  if (v == x) return Polynomial{{1, 1.0}};
  if (const auto scalar = scalar_of(r, v)) return Polynomial{{0, static_cast<double>(*scalar)}};
  const Node* node = r.producer(v);
  if (node == nullptr || depth == kMaxDepth) return std::nullopt;
  const auto a = polynomial_in(r, node->input(0), x, depth + 1);
  if (!a) return std::nullopt;
  if (node->is("Pow")) {
    const auto exponent = scalar_of(r, node->input(1));
    if (exponent == 2.0F) return multiply(*a, *a);
    if (exponent == 3.0F) return multiply(multiply(*a, *a), *a);
    return std::nullopt;
  }
  if (node->inputs.size() != 2) return std::nullopt;
  auto b = polynomial_in(r, node->input(1), x, depth + 1);
  if (!b) return std::nullopt;
  if (node->is("Mul")) return multiply(*a, *b);
  if (node->is("Add")) {
    for (const auto& [exponent, coefficient] : *a) (*b)[exponent] += coefficient;
    return b;
  }
  if (node->is("Div") && b->size() == 1 && b->begin()->first == 0 && b->begin()->second != 0.0) {
    return multiply(*a, {{0, 1.0 / b->begin()->second}});
  }
  return std::nullopt;
}

bool is_polynomial(const Rewriter& r, ValueId v, ValueId x, const Polynomial& wanted) {
  const auto found = polynomial_in(r, v, x);
  if (!found || found->size() != wanted.size()) return false;
  for (const auto& [exponent, coefficient] : wanted) {
    const auto it = found->find(exponent);
    if (it == found->end() || !is_about(static_cast<float>(it->second), coefficient)) return false;
  }
  return true;
}

// v = constant * factors[0] * factors[1] ...: Mul by anything, Div by a scalar.
struct Product {
  double constant = 1.0;
  std::vector<ValueId> factors;
};

void collect(const Rewriter& r, ValueId v, bool open, Product& product) {
  if (const auto scalar = scalar_of(r, v)) {
    product.constant *= static_cast<double>(*scalar);
    return;
  }
  const Node* node = open && product.factors.size() < 4 ? r.producer(v) : nullptr;
  if (node != nullptr && node->is("Mul") && node->inputs.size() == 2) {
    collect(r, node->input(0), r.used_once(node->input(0)), product);
    collect(r, node->input(1), r.used_once(node->input(1)), product);
  } else if (const auto quotient = with_factor(r, node)) {
    product.constant *= quotient->factor;
    collect(r, quotient->value, r.used_once(quotient->value), product);
  } else {
    product.factors.push_back(v);
  }
}

// v = a * (1 + f(u)) for f = Erf or Tanh.
struct Gate {
  double a = 0.0;
  bool tanh = false;
  ValueId u = kNoValue;
};

std::optional<Gate> match_gate(const Rewriter& r, ValueId v) {
  if (!r.used_once(v)) return std::nullopt;
  const auto sum = with_scalar(r, r.producer(v), "Add");
  if (!sum || !r.used_once(sum->value)) return std::nullopt;
  Product term;
  collect(r, sum->value, true, term);
  if (term.factors.size() != 1 || !is_about(sum->scalar, term.constant)) return std::nullopt;
  const ValueId f = term.factors[0];
  const Node* node = r.producer(f);
  const bool function = node != nullptr && (node->is("Erf") || node->is("Tanh"));
  if (!function || !r.used_once(f)) return std::nullopt;
  return Gate{term.constant, node->is("Tanh"), node->input(0)};
}

bool fuse_product(Rewriter& r, NodeId n) {
  const Node& node = r.node(n);
  if (!node.is("Mul") && !node.is("Div")) return false;
  Product product;
  collect(r, node.output(0), true, product);
  if (product.factors.size() != 2) return false;
  for (const std::size_t i : {0U, 1U}) {
    const ValueId x = product.factors[i];
    const auto gate = match_gate(r, product.factors[1 - i]);
    if (!gate || r.dtype(x) != DType::kF32 || !same_shape(r, x, node.output(0)) ||
        !is_about(static_cast<float>(gate->a * product.constant), 0.5)) {
      continue;
    }
    const Polynomial wanted = gate->tanh
                                  ? Polynomial{{1, kSqrtTwoOverPi}, {3, kSqrtTwoOverPi * kCubic}}
                                  : Polynomial{{1, kSqrtHalf}};
    if (!is_polynomial(r, gate->u, x, wanted)) continue;
    r.rewrite(n, "", "Gelu", {x}, {{"approximate", std::string(gate->tanh ? "tanh" : "none")}});
    return true;
  }
  return false;
}

// onnxruntime's own: Gelu(x), BiasGelu(x, bias), FastGelu(x, bias?).
bool rename_contrib(Rewriter& r, NodeId n) {
  const Node& node = r.node(n);
  const bool fast = node.is("FastGelu", "com.microsoft");
  if (!fast && !node.is("Gelu", "com.microsoft") && !node.is("BiasGelu", "com.microsoft")) {
    return false;
  }
  ValueId x = node.input(0);
  const ValueId bias = node.input(1);
  if (bias != kNoValue) x = r.insert(n, "Add", {x, bias});
  r.rewrite(n, "", "Gelu", {x}, {{"approximate", std::string(fast ? "tanh" : "none")}});
  return true;
}

}  // namespace

void fuse_gelu(Rewriter& r, PassState& /*state*/) {
  for (NodeId n = 0; n < r.count(); ++n) {
    if (r.alive(n) && !rename_contrib(r, n)) fuse_product(r, n);
  }
}

}  // namespace kvik::graph
