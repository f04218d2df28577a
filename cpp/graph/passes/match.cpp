#include "graph/passes/match.h"

#include <algorithm>
#include <cmath>

namespace kvik::graph {

std::optional<float> scalar_of(const Rewriter& r, ValueId v) {
  if (r.dtype(v) != DType::kF32) return std::nullopt;
  if (const auto content = r.content(v)) return content->real_constant();
  return std::nullopt;
}

bool is_about(std::optional<float> found, double meant) {
  // A few roundings to float32 (2^-24 each) may lie between the number and its spelling; the next
  // constant that means something else is much further away.
  constexpr double kRelative = 1.0e-6;
  return found && std::fabs(static_cast<double>(*found) - meant) <= kRelative * std::fabs(meant);
}

std::optional<Scaled> with_scalar(const Rewriter& r, const Node* node,
                                  std::string_view commutative) {
  if (node == nullptr || !node->is(commutative) || node->inputs.size() != 2) return std::nullopt;
  for (const std::size_t i : {1U, 0U}) {
    const auto scalar = scalar_of(r, node->input(i));
    if (scalar && keeps_shape(r, node->input(1 - i), node->input(i))) {
      return Scaled{node->input(1 - i), *scalar};
    }
  }
  return std::nullopt;
}

std::optional<Factor> with_factor(const Rewriter& r, const Node* node) {
  if (const auto scaled = with_scalar(r, node, "Mul")) {
    return Factor{scaled->value, static_cast<double>(scaled->scalar)};
  }
  if (node == nullptr || !node->is("Div") || node->inputs.size() != 2) return std::nullopt;
  const auto divisor = scalar_of(r, node->input(1));
  if (!divisor || *divisor == 0.0F || !keeps_shape(r, node->input(0), node->input(1))) {
    return std::nullopt;
  }
  return Factor{node->input(0), 1.0 / static_cast<double>(*divisor)};
}

ValueId other_operand(const Node& node, ValueId v) {
  if (node.inputs.size() != 2) return kNoValue;
  if (node.input(0) == v) return node.input(1);
  return node.input(1) == v ? node.input(0) : kNoValue;
}

std::vector<ValueId> flatten(const Rewriter& r, ValueId v, std::string_view op, std::size_t limit) {
  std::vector<ValueId> out{v};
  for (std::size_t i = 0; i < out.size() && out.size() < limit;) {
    const Node* node = r.producer(out[i], op);
    const bool open =
        node != nullptr && node->inputs.size() == 2 && (out[i] == v || r.used_once(out[i]));
    if (!open) {
      ++i;
      continue;
    }
    const ValueId second = node->input(1);
    out[i] = node->input(0);
    out.insert(out.begin() + static_cast<std::ptrdiff_t>(i) + 1, second);
  }
  return out;
}

bool has_unknown(const Shape& shape) {
  return std::any_of(shape.begin(), shape.end(), [](const Expr& e) { return e.has_unknown(); });
}

bool keeps_shape(const Rewriter& r, ValueId value, ValueId operand) {
  const auto a = r.shape(value);
  const auto b = r.shape(operand);
  if (b && b->empty()) return true;
  return a && b && broadcast(*a, *b) == *a;
}

bool same_shape(const Rewriter& r, ValueId a, ValueId b) {
  const auto x = r.shape(a);
  const auto y = r.shape(b);
  return x && y && *x == *y;
}

ValueId as_vector(Rewriter& r, ValueId v, const Expr& n) {
  const ConstantTensor* tensor = r.constant(v);
  if (tensor == nullptr || tensor->dtype != DType::kF32 || tensor->dims.rank == 0 ||
      !n.is(tensor->dims.back()) || tensor->dims.elements() != tensor->dims.back()) {
    return kNoValue;
  }
  if (tensor->dims.rank == 1) return v;
  ConstantTensor view = *tensor;
  view.dims = Dims{tensor->dims.back()};
  return r.add_constant(std::move(view), r.graph().value(v).name);
}

std::optional<Dequantized> as_dequantized(const Rewriter& r, ValueId v) {
  constexpr std::int64_t kOnnxFloat = 1;
  const Node* node = r.producer(v, "DequantizeLinear");
  if (node == nullptr) return std::nullopt;
  const ConstantTensor* values = r.constant(node->input(0));
  const ConstantTensor* scale = r.constant(node->input(1));
  if (values == nullptr || scale == nullptr || values->dims.rank != 2) return std::nullopt;
  const auto axis = normalize_axis(node->int_attr("axis", 1), 2);
  const std::int64_t type = node->int_attr("output_dtype", 0);
  const bool narrow = values->dtype == DType::kI8 || values->dtype == DType::kU8 ||
                      values->dtype == DType::kI4 || values->dtype == DType::kU4;
  if (!narrow || scale->dtype != DType::kF32 || !axis || (type != 0 && type != kOnnxFloat)) {
    return std::nullopt;
  }
  if (node->input(2) != kNoValue) {
    const ConstantTensor* zero = r.constant(node->input(2));
    if (zero == nullptr || zero->dtype != values->dtype || !(zero->dims == scale->dims)) {
      return std::nullopt;
    }
  }
  return Dequantized{node->input(0),
                     node->input(1),
                     node->input(2),
                     {{"axis", std::int64_t{*axis}}, {"block", node->int_attr("block_size", 0)}}};
}

bool on_last_axis(const Rewriter& r, const Node& node, std::int64_t fallback) {
  const std::int64_t axis = node.int_attr("axis", fallback);
  if (axis == -1) return true;
  const auto shape = r.shape(node.input(0));
  return shape && !shape->empty() && axis == static_cast<std::int64_t>(shape->size()) - 1;
}

bool reduces_last_axis(const Rewriter& r, const Node& node) {
  if (node.int_attr("keepdims", 1) == 0) return false;
  const auto axes = r.graph().constant_ints(node.input(1));
  if (!axes || axes->size() != 1) return false;
  if ((*axes)[0] == -1) return true;
  const auto shape = r.shape(node.input(0));
  return shape && (*axes)[0] == static_cast<std::int64_t>(shape->size()) - 1;
}

std::optional<ValueId> shape_value(Rewriter& r, NodeId n, const Shape& target,
                                   const std::vector<ValueId>& sources) {
  std::vector<std::int64_t> fixed;
  std::vector<std::size_t> open;
  bool zero = false;
  for (std::size_t i = 0; i < target.size(); ++i) {
    const auto constant = target[i].constant();
    if (!constant) open.push_back(i);
    zero = zero || constant == 0;
    fixed.push_back(constant.value_or(-1));
  }
  if (zero) return std::nullopt;  // 0 would mean "as in the input", and -1 nothing
  if (open.size() <= 1) return r.add_ints(fixed, "shape");

  struct Found {
    ValueId value;
    std::int64_t axis;
  };
  std::map<std::size_t, Found> found;
  std::optional<std::size_t> wildcard;
  for (const std::size_t i : open) {
    for (const ValueId source : sources) {
      const auto shape = r.shape(source);
      if (!shape || found.count(i) != 0) continue;
      const auto it = std::find(shape->begin(), shape->end(), target[i]);
      if (it != shape->end()) found.emplace(i, Found{source, it - shape->begin()});
    }
    if (found.count(i) != 0) continue;
    if (wildcard) return std::nullopt;
    wildcard = i;
  }
  if (!wildcard) found.erase(open.front());  // the reshape finds one by itself
  std::vector<ValueId> parts;
  std::vector<std::int64_t> run;
  const auto flush = [&] {
    if (!run.empty()) parts.push_back(r.add_ints(run, "shape"));
    run.clear();
  };
  for (std::size_t i = 0; i < target.size(); ++i) {
    const auto it = found.find(i);
    if (it == found.end()) {
      run.push_back(fixed[i]);
      continue;
    }
    flush();
    parts.push_back(r.insert(n, "Shape", {it->second.value},
                             {{"start", it->second.axis}, {"end", it->second.axis + 1}}));
  }
  flush();
  if (parts.size() == 1) return parts[0];
  return r.insert(n, "Concat", parts, {{"axis", std::int64_t{0}}});
}

}  // namespace kvik::graph
