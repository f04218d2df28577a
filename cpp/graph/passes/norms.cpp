#include "graph/passes/norms.h"

#include <cmath>

namespace kvik::graph {

namespace {

// v = base^exponent for an exponent of 0.5 or -0.5: Sqrt, Reciprocal, 1/x and Pow in any mix.
struct Root {
  ValueId base = kNoValue;
  double exponent = 1.0;
};

std::optional<Root> match_root(const Rewriter& r, ValueId v) {
  Root root{v, 1.0};
  for (int depth = 0; depth < 3; ++depth) {
    const Node* node = r.producer(root.base);
    if (node == nullptr) break;
    double exponent = 0.0;
    ValueId base = node->input(0);
    if (node->is("Sqrt")) {
      exponent = 0.5;
    } else if (node->is("Reciprocal")) {
      exponent = -1.0;
    } else if (node->is("Div") && scalar_of(r, node->input(0)) == 1.0F) {
      exponent = -1.0;
      base = node->input(1);
    } else if (node->is("Pow") && scalar_of(r, node->input(1))) {
      exponent = static_cast<double>(*scalar_of(r, node->input(1)));
    } else {
      break;
    }
    if (root.base != v && !r.used_once(root.base)) return std::nullopt;
    root = {base, root.exponent * exponent};
    if (std::fabs(root.exponent) == 0.5) {
      // Sqrt(Reciprocal(x)) goes on; anything else has arrived.
      const Node* next = r.producer(base);
      if (next == nullptr || !(next->is("Reciprocal") || next->is("Div"))) return root;
    }
  }
  if (std::fabs(root.exponent) != 0.5) return std::nullopt;
  return root;
}

// The d of d * d or d^2.
ValueId square_root_of(const Rewriter& r, ValueId v) {
  const Node* node = r.producer(v);
  if (node == nullptr) return kNoValue;
  if (node->is("Mul") && node->input(0) == node->input(1)) return node->input(0);
  if (node->is("Pow") && scalar_of(r, node->input(1)) == 2.0F) return node->input(0);
  return kNoValue;
}

// mean(d^2) + epsilon.
std::optional<Normalised> match_mean_square(const Rewriter& r, ValueId v) {
  if (!r.used_once(v)) return std::nullopt;
  const auto sum = with_scalar(r, r.producer(v), "Add");
  if (!sum || !(sum->scalar > 0.0F) || !r.used_once(sum->value)) return std::nullopt;
  const Node* mean = r.producer(sum->value, "ReduceMean");
  if (mean == nullptr || !reduces_last_axis(r, *mean) || !r.used_once(mean->input(0))) {
    return std::nullopt;
  }
  const ValueId value = square_root_of(r, mean->input(0));
  if (value == kNoValue || r.dtype(value) != DType::kF32) return std::nullopt;
  return Normalised{value, sum->scalar};
}

std::optional<Normalised> match_quotient(const Rewriter& r, ValueId value, ValueId root_value,
                                         double exponent) {
  if (!r.used_once(root_value)) return std::nullopt;
  const auto root = match_root(r, root_value);
  if (!root || root->exponent != exponent) return std::nullopt;
  const auto found = match_mean_square(r, root->base);
  return found && found->value == value ? found : std::nullopt;
}

}  // namespace

std::optional<Normalised> match_normalised(const Rewriter& r, const Node& node) {
  if (node.inputs.size() != 2) return std::nullopt;
  if (node.is("Div")) return match_quotient(r, node.input(0), node.input(1), 0.5);
  if (!node.is("Mul")) return std::nullopt;
  if (const auto found = match_quotient(r, node.input(0), node.input(1), -0.5)) return found;
  return match_quotient(r, node.input(1), node.input(0), -0.5);
}

ValueId ones(Rewriter& r, std::int64_t n) {
  const std::vector<float> values(static_cast<std::size_t>(n), 1.0F);
  return r.add_constant(ConstantTensor::from_floats(values, Dims{n}), "ones");
}

bool is_ones(const Rewriter& r, ValueId v) {
  const ConstantTensor* tensor = r.constant(v);
  if (tensor == nullptr || !dtype_is_float(tensor->dtype)) return false;
  for (std::int64_t i = 0; i < tensor->dims.elements(); ++i) {
    if (tensor->float_at(i) != 1.0) return false;
  }
  return true;
}

std::optional<std::int64_t> feature_count(const Rewriter& r, ValueId v) {
  const auto shape = r.shape(v);
  if (r.dtype(v) != DType::kF32 || !shape || shape->empty()) return std::nullopt;
  const auto n = shape->back().constant();
  return n && *n > 0 ? n : std::nullopt;
}

bool absorb_scale(Rewriter& r, NodeId n, std::string_view norm) {
  const Node& node = r.node(n);
  if (!node.is("Mul") || node.inputs.size() != 2) return false;
  for (const std::size_t i : {0U, 1U}) {
    const ValueId normed = node.input(i);
    const Node* found = r.producer(normed, norm);
    const auto features = feature_count(r, normed);
    if (found == nullptr || !features || !r.used_once(normed) || found->outputs.size() != 1 ||
        found->input(2) != kNoValue || found->int_attr("axis", -1) != -1 ||
        !is_ones(r, found->input(1)) || !keeps_shape(r, normed, node.input(1 - i))) {
      continue;
    }
    const ValueId scale = as_vector(r, node.input(1 - i), Expr(*features));
    if (scale == kNoValue) continue;
    r.rewrite(n, "", std::string(norm), {found->input(0), scale}, found->attributes);
    return true;
  }
  return false;
}

}  // namespace kvik::graph
