// When a bias on an attention score hides a key.
#pragma once

namespace kvik::graph {

// A score of this or less, relative to a visible one, has a softmax weight of exactly zero in
// float32 unless scores reach the thousands; models write -1e4, -1e9, the lowest float or -inf.
inline constexpr float kHiddenScore = -1e4F;

}  // namespace kvik::graph
