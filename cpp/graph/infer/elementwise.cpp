// Inference of element-wise operators.
#include "graph/infer/rules.h"

namespace kvik::graph {

namespace {

// The broadcast shape of all inputs from `first` on, or nothing if one is unknown.
std::optional<Shape> broadcast_inputs(const InferContext& c, std::size_t first = 0) {
  std::optional<Shape> out;
  for (std::size_t i = first; i < c.inputs(); ++i) {
    if (!c.has(i)) continue;
    if (!c.shape(i)) return std::nullopt;
    out = out ? broadcast(*out, *c.shape(i)) : *c.shape(i);
  }
  return out;
}

std::optional<Expr> aligned(const InferContext& c, std::size_t i, const std::optional<Shape>& to) {
  const auto content = c.content(i);
  if (!content || !to || !c.shape(i)) return std::nullopt;
  return broadcast_content(*content, *c.shape(i), *to);
}

void same_as_first(InferContext& c) {
  c.set(0, c.dtype(0), c.shape(0));
}

void identity(InferContext& c) {
  same_as_first(c);
  c.set_content(0, c.content(0));
}

void to_bool(InferContext& c) {
  c.set(0, DType::kBool, c.shape(0));
}

template <ExprKind kind>
void unary(InferContext& c) {
  same_as_first(c);
  const auto x = c.content(0);
  if (!x) return;
  if (x->type() == ExprType::kFloat) {
    c.set_content(0, float_unary(kind, *x));
  } else if (x->type() == ExprType::kInt && kind == ExprKind::kFloatNeg) {
    c.set_content(0, Expr(0) - *x);
  } else if (x->type() == ExprType::kInt && kind == ExprKind::kFloatAbs) {
    c.set_content(0, max(*x, Expr(0) - *x));
  }
}

void logical_not_rule(InferContext& c) {
  to_bool(c);
  if (const auto x = c.content(0)) c.set_content(0, logical_not(*x));
}

enum class Arithmetic { kAdd, kSub, kMul, kDiv, kMod, kPow, kMin, kMax };

// The least (or the greatest) of two integers, decided by the limits on symbols where they are
// known: min(sequence, 64) is the sequence once no longer one is possible.
Expr extreme(const InferContext& c, bool least, const Expr& a, const Expr& b) {
  const Expr::Bounds d = c.bounds(a - b);
  if (d.high <= 0) return least ? a : b;
  if (d.low >= 0) return least ? b : a;
  return least ? min(a, b) : max(a, b);
}

std::optional<Expr> arithmetic(const InferContext& c, Arithmetic op, const Expr& a, const Expr& b) {
  if (a.type() != b.type()) return std::nullopt;
  if (a.type() == ExprType::kFloat) {
    switch (op) {
      case Arithmetic::kAdd: return float_binary(ExprKind::kFloatAdd, a, b);
      case Arithmetic::kSub: return float_binary(ExprKind::kFloatSub, a, b);
      case Arithmetic::kMul: return float_binary(ExprKind::kFloatMul, a, b);
      case Arithmetic::kDiv: return float_binary(ExprKind::kFloatDiv, a, b);
      case Arithmetic::kPow: return float_binary(ExprKind::kFloatPow, a, b);
      case Arithmetic::kMin: return float_binary(ExprKind::kFloatMin, a, b);
      case Arithmetic::kMax: return float_binary(ExprKind::kFloatMax, a, b);
      case Arithmetic::kMod: return std::nullopt;
    }
  }
  if (a.type() != ExprType::kInt) return std::nullopt;
  // ONNX divides integers towards zero, expressions towards minus infinity: the same for
  // operands that are not negative.
  const bool natural = a.bounds().low >= 0 && b.bounds().low >= 1;
  switch (op) {
    case Arithmetic::kAdd: return a + b;
    case Arithmetic::kSub: return a - b;
    case Arithmetic::kMul: return a * b;
    case Arithmetic::kDiv:
      if (!natural) return std::nullopt;
      return floor_div(a, b);
    case Arithmetic::kMod:
      if (!natural) return std::nullopt;
      return floor_mod(a, b);
    case Arithmetic::kMin: return extreme(c, true, a, b);
    case Arithmetic::kMax: return extreme(c, false, a, b);
    case Arithmetic::kPow: return std::nullopt;
  }
  return std::nullopt;
}

template <Arithmetic op>
void binary(InferContext& c) {
  const auto shape = broadcast_inputs(c);
  c.set(0, c.dtype(0), shape);
  std::optional<Expr> content = aligned(c, 0, shape);
  for (std::size_t i = 1; i < c.inputs() && content; ++i) {
    const auto next = aligned(c, i, shape);
    content = next ? arithmetic(c, op, *content, *next) : std::nullopt;
  }
  c.set_content(0, content);
}

enum class Comparison { kEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kAnd, kOr, kXor };

std::optional<Expr> compare(Comparison op, const Expr& a, const Expr& b) {
  if (a.type() != b.type()) return std::nullopt;
  const bool logical = op == Comparison::kAnd || op == Comparison::kOr || op == Comparison::kXor;
  if (logical != (a.type() == ExprType::kBool) && op != Comparison::kEqual) return std::nullopt;
  switch (op) {
    case Comparison::kEqual: return equal(a, b);
    case Comparison::kLess: return less(a, b);
    case Comparison::kGreater: return less(b, a);
    // Contents hold no NaN, so "not greater" is "less or equal".
    case Comparison::kLessEqual: return logical_not(less(b, a));
    case Comparison::kGreaterEqual: return logical_not(less(a, b));
    case Comparison::kAnd: return logical_and(a, b);
    case Comparison::kOr: return logical_or(a, b);
    case Comparison::kXor: return logical_not(equal(a, b));
  }
  return std::nullopt;
}

template <Comparison op>
void comparison(InferContext& c) {
  const auto shape = broadcast_inputs(c);
  c.set(0, DType::kBool, shape);
  const auto a = aligned(c, 0, shape);
  const auto b = aligned(c, 1, shape);
  if (a && b) c.set_content(0, compare(op, *a, *b));
}

// BitwiseAnd and BitwiseOr of booleans are logical; of integers they have no expression.
template <Comparison op>
void bitwise(InferContext& c) {
  const auto shape = broadcast_inputs(c);
  c.set(0, c.dtype(0), shape);
  const auto a = aligned(c, 0, shape);
  const auto b = aligned(c, 1, shape);
  if (a && b && a->type() == ExprType::kBool) c.set_content(0, compare(op, *a, *b));
}

void where_rule(InferContext& c) {
  const auto shape = broadcast_inputs(c);
  c.set(0, c.dtype(1), shape);
  const auto condition = aligned(c, 0, shape);
  if (!condition) return;
  const auto a = aligned(c, 1, shape);
  const auto b = aligned(c, 2, shape);
  if (condition->truth()) {
    c.set_content(0, *condition->truth() ? a : b);
  } else if (a && b) {
    c.set_content(0, where(*condition, *a, *b));
  }
}

void cast_to(InferContext& c, DType to) {
  c.set(0, to, c.shape(0));
  const auto type = content_type(to);
  const auto content = c.content(0);
  if (type && content) c.set_content(0, cast(*content, *type));
}

void cast_rule(InferContext& c) {
  // Node attributes keep ONNX's own numbering of element types.
  static constexpr DType kByNumber[] = {DType::kUndefined, DType::kF32,  DType::kU8,  DType::kI8,
                                        DType::kU16,       DType::kI16,  DType::kI32, DType::kI64,
                                        DType::kString,    DType::kBool, DType::kF16, DType::kF64,
                                        DType::kU32,       DType::kU64};
  const std::int64_t to = c.node().int_attr("to", 0);
  if (to == 16) return cast_to(c, DType::kBF16);
  if (to == 21) return cast_to(c, DType::kU4);
  if (to == 22) return cast_to(c, DType::kI4);
  cast_to(c, to >= 0 && to < 14 ? kByNumber[to] : DType::kUndefined);
}

void cast_like_rule(InferContext& c) {
  cast_to(c, c.dtype(1));
}

void silu_mul(InferContext& c) {
  c.set(0, c.dtype(0), broadcast_inputs(c));
}

}  // namespace

std::vector<InferEntry> elementwise_rules() {
  std::vector<InferEntry> rules = {
      {"", "Identity", identity},
      {"", "Neg", unary<ExprKind::kFloatNeg>},
      {"", "Abs", unary<ExprKind::kFloatAbs>},
      {"", "Exp", unary<ExprKind::kFloatExp>},
      {"", "Log", unary<ExprKind::kFloatLog>},
      {"", "Sqrt", unary<ExprKind::kFloatSqrt>},
      {"", "Floor", unary<ExprKind::kFloatFloor>},
      {"", "Ceil", unary<ExprKind::kFloatCeil>},
      {"", "Not", logical_not_rule},
      {"", "IsNaN", to_bool},
      {"", "IsInf", to_bool},
      {"", "Add", binary<Arithmetic::kAdd>},
      {"", "Sub", binary<Arithmetic::kSub>},
      {"", "Mul", binary<Arithmetic::kMul>},
      {"", "Div", binary<Arithmetic::kDiv>},
      {"", "Mod", binary<Arithmetic::kMod>},
      {"", "Pow", binary<Arithmetic::kPow>},
      {"", "Min", binary<Arithmetic::kMin>},
      {"", "Max", binary<Arithmetic::kMax>},
      {"", "Equal", comparison<Comparison::kEqual>},
      {"", "Less", comparison<Comparison::kLess>},
      {"", "LessOrEqual", comparison<Comparison::kLessEqual>},
      {"", "Greater", comparison<Comparison::kGreater>},
      {"", "GreaterOrEqual", comparison<Comparison::kGreaterEqual>},
      {"", "And", comparison<Comparison::kAnd>},
      {"", "Or", comparison<Comparison::kOr>},
      {"", "Xor", comparison<Comparison::kXor>},
      {"", "BitwiseAnd", bitwise<Comparison::kAnd>},
      {"", "BitwiseOr", bitwise<Comparison::kOr>},
      {"", "Where", where_rule},
      {"", "Cast", cast_rule},
      {"", "CastLike", cast_like_rule},
      {"", "Sum", binary<Arithmetic::kAdd>},
      {"kvik", "SiluMul", silu_mul},
      {"", "PRelu", same_as_first},
      {"", "Dropout", identity},
  };
  for (const char* op : {"Relu",      "Sigmoid",     "Tanh",      "Erf",   "Gelu",
                         "Swish",     "Cos",         "Sin",       "Tan",   "Reciprocal",
                         "Softplus",  "Softsign",    "Elu",       "Selu",  "Celu",
                         "LeakyRelu", "HardSigmoid", "HardSwish", "Mish",  "ThresholdedRelu",
                         "Clip",      "Round",       "Sign",      "Acos",  "Asin",
                         "Atan",      "Cosh",        "Sinh",      "Acosh", "Asinh",
                         "Atanh",     "BitwiseNot"}) {
    rules.push_back({"", op, same_as_first});
  }
  return rules;
}

}  // namespace kvik::graph
