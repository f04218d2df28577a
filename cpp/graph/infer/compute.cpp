// Inference of operators that compute: products, reductions, normalisations, attention.
#include "graph/infer/rules.h"

namespace kvik::graph {

namespace {

void as_first_input(InferContext& c) {
  c.set(0, c.dtype(0), c.shape(0));
}

void matmul(InferContext& c) {
  const auto& a = c.shape(0);
  const auto& b = c.shape(1);
  if (!a || !b || a->empty() || b->empty()) return c.set(0, c.dtype(0), std::nullopt);
  Shape left = *a;
  Shape right = *b;
  const bool vector_left = left.size() == 1;
  const bool vector_right = right.size() == 1;
  if (vector_left) left.insert(left.begin(), Expr(1));
  if (vector_right) right.emplace_back(1);
  Shape out = broadcast(Shape(left.begin(), left.end() - 2), Shape(right.begin(), right.end() - 2));
  if (!vector_left) out.push_back(left[left.size() - 2]);
  if (!vector_right) out.push_back(right.back());
  c.set(0, c.dtype(0), out);
}

void gemm(InferContext& c) {
  const auto& a = c.shape(0);
  const auto& b = c.shape(1);
  if (!a || !b || a->size() != 2 || b->size() != 2) return c.set(0, c.dtype(0), std::nullopt);
  const bool trans_a = c.node().int_attr("transA", 0) != 0;
  const bool trans_b = c.node().int_attr("transB", 0) != 0;
  c.set(0, c.dtype(0), Shape{(*a)[trans_a ? 1 : 0], (*b)[trans_b ? 0 : 1]});
}

void linear(InferContext& c) {
  const auto& x = c.shape(0);
  const auto& w = c.shape(1);
  if (!x || x->empty() || !w || w->size() != 2) return c.set(0, c.dtype(0), std::nullopt);
  Shape out = *x;
  out.back() = (*w)[c.node().int_attr("trans_w", 0) != 0 ? 0 : 1];
  c.set(0, c.dtype(0), out);
}

void embedding(InferContext& c) {
  const auto& table = c.shape(0);
  const auto& ids = c.shape(1);
  if (!ids || !table || table->size() != 2) return c.set(0, DType::kF32, std::nullopt);
  Shape out = *ids;
  out.push_back((*table)[1]);
  c.set(0, DType::kF32, out);
}

void dequantize(InferContext& c) {
  constexpr std::int64_t kOnnxFloat = 1;
  const std::int64_t type = c.node().int_attr("output_dtype", 0);
  const DType dtype = type == 0 ? c.dtype(1) : type == kOnnxFloat ? DType::kF32 : DType::kUndefined;
  c.set(0, dtype, c.shape(0));
}

// Of integers that are the same along the reduced axes: a mask of ones adds up to its length.
std::optional<Expr> reduced_content(const InferContext& c, const Shape& from,
                                    const std::vector<bool>& reduced, bool keep) {
  const auto content = c.content(0);
  const bool sum = c.node().op == "ReduceSum";
  if (!content || content->type() != ExprType::kInt ||
      (!sum && c.node().op != "ReduceMax" && c.node().op != "ReduceMin")) {
    return std::nullopt;
  }
  Expr count(1);
  std::map<int, Expr> indices;
  int out = 0;
  for (int axis = 0; axis < static_cast<int>(from.size()); ++axis) {
    if (!reduced[static_cast<std::size_t>(axis)]) {
      indices.emplace(axis, Expr::index(out++));
      continue;
    }
    if (content->has_index(axis)) return std::nullopt;
    count = count * from[static_cast<std::size_t>(axis)];
    if (keep) ++out;
  }
  const Expr same = content->substitute(indices);
  return sum ? same * count : same;
}

void reduce(InferContext& c) {
  const auto& from = c.shape(0);
  if (!from) return c.set(0, c.dtype(0), std::nullopt);
  const bool keep = c.node().int_attr("keepdims", 1) != 0;
  std::vector<bool> reduced(from->size(), false);
  std::optional<std::vector<std::int64_t>> axes =
      c.has(1) ? c.ints(1) : std::vector<std::int64_t>{};
  if (!axes) return c.set(0, c.dtype(0), std::nullopt);
  if (axes->empty()) {
    reduced.assign(from->size(), c.node().int_attr("noop_with_empty_axes", 0) == 0);
  }
  for (const std::int64_t a : *axes) {
    const auto axis = normalize_axis(a, from->size());
    if (!axis) return c.set(0, c.dtype(0), std::nullopt);
    reduced[static_cast<std::size_t>(*axis)] = true;
  }
  Shape out;
  for (std::size_t i = 0; i < from->size(); ++i) {
    if (!reduced[i]) {
      out.push_back((*from)[i]);
    } else if (keep) {
      out.emplace_back(1);
    }
  }
  c.set(0, c.dtype(0), out);
  c.set_content(0, reduced_content(c, *from, reduced, keep));
}

void arg_reduce(InferContext& c) {
  const auto& from = c.shape(0);
  const auto axis =
      from ? normalize_axis(c.node().int_attr("axis", 0), from->size()) : std::nullopt;
  if (!axis) return c.set(0, DType::kI64, std::nullopt);
  Shape out = *from;
  if (c.node().int_attr("keepdims", 1) != 0) {
    out[static_cast<std::size_t>(*axis)] = Expr(1);
  } else {
    out.erase(out.begin() + *axis);
  }
  c.set(0, DType::kI64, out);
}

void top_k(InferContext& c) {
  const auto& from = c.shape(0);
  const auto axis =
      from ? normalize_axis(c.node().int_attr("axis", -1), from->size()) : std::nullopt;
  const auto k = c.element(1, 0);
  std::optional<Shape> out;
  if (axis && k) {
    out = *from;
    (*out)[static_cast<std::size_t>(*axis)] = *k;
  }
  c.set(0, c.dtype(0), out);
  c.set(1, DType::kI64, out);
}

void layer_norm(InferContext& c) {
  as_first_input(c);
  const auto& from = c.shape(0);
  const auto axis =
      from ? normalize_axis(c.node().int_attr("axis", -1), from->size()) : std::nullopt;
  if (!axis) return;
  Shape moments(from->begin(), from->begin() + *axis);
  moments.resize(from->size(), Expr(1));
  c.set(1, DType::kF32, moments);
  c.set(2, DType::kF32, moments);
}

// The scores (or weights) [B, H, queries, keys], where the keys are the new ones alone.
void attention_scores(InferContext& c, const Shape& q, const Shape& k) {
  const bool past = c.node().input(4) != kNoValue;
  const std::size_t axis = q.size() - 2;
  const Expr heads = q.size() == 4 ? q[1] : Expr(c.node().int_attr("q_num_heads", 0));
  c.set(3, c.dtype(0), Shape{q[0], heads, q[axis], past ? Expr::unknown() : k[axis]});
}

// Attention: 4-D [B, H, S, D] or 3-D [B, S, H·D]; the value's head size may differ.
void attention(InferContext& c) {
  const auto& q = c.shape(0);
  const auto& k = c.shape(1);
  const auto& v = c.shape(2);
  if (!q || !k || !v || q->size() != k->size() || q->size() != v->size()) {
    return c.set(0, c.dtype(0), std::nullopt);
  }
  Shape out = *q;
  if (q->size() == 4) {
    out.back() = v->back();
  } else if (q->size() == 3) {
    const std::int64_t heads = c.node().int_attr("q_num_heads", 0);
    const std::int64_t kv_heads = c.node().int_attr("kv_num_heads", 0);
    const auto head_dim = kv_heads > 0 ? exact_div(v->back(), Expr(kv_heads)) : std::nullopt;
    out.back() = head_dim ? *head_dim * Expr(heads) : Expr::unknown();
  } else {
    return c.set(0, c.dtype(0), std::nullopt);
  }
  c.set(0, c.dtype(0), out);
  if (c.node().output(3) != kNoValue) attention_scores(c, *q, *k);
}

}  // namespace

std::vector<InferEntry> compute_rules() {
  std::vector<InferEntry> rules = {{"", "MatMul", matmul},
                                   {"", "Gemm", gemm},
                                   {"kvik", "Linear", linear},
                                   {"kvik", "Embedding", embedding},
                                   {"", "DequantizeLinear", dequantize},
                                   {"", "ArgMax", arg_reduce},
                                   {"", "ArgMin", arg_reduce},
                                   {"", "TopK", top_k},
                                   {"", "LayerNormalization", layer_norm},
                                   {"", "Attention", attention}};
  for (const char* op : {"Softmax", "LogSoftmax", "Hardmax", "RMSNormalization", "RotaryEmbedding",
                         "LpNormalization", "BatchNormalization", "InstanceNormalization",
                         "GroupNormalization", "MeanVarianceNormalization", "LRN"}) {
    rules.push_back({"", op, as_first_input});
  }
  for (const char* op :
       {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
        "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"}) {
    rules.push_back({"", op, reduce});
  }
  return rules;
}

}  // namespace kvik::graph
