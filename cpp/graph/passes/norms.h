// What the two normalisations share: the root of a mean of squares, and scales of ones.
#pragma once

#include <optional>

#include "graph/passes/match.h"

namespace kvik::graph {

// node = d / sqrt(mean(d^2) + epsilon), the mean over the last axis, in any spelling.
struct Normalised {
  ValueId value = kNoValue;  // d
  float epsilon = 0.0F;
};
std::optional<Normalised> match_normalised(const Rewriter& r, const Node& node);

// A constant of n ones, the scale of a normalisation that has none.
ValueId ones(Rewriter& r, std::int64_t n);
bool is_ones(const Rewriter& r, ValueId v);

// The constant size of the value's last axis, if it is float32.
std::optional<std::int64_t> feature_count(const Rewriter& r, ValueId v);

// Mul(norm(x, ones), scale) -> norm(x, scale) for a constant scale [n].
bool absorb_scale(Rewriter& r, NodeId n, std::string_view norm);

}  // namespace kvik::graph
