// What the attributes and weights of an LSTM, GRU or RNN say: for the operators over whole
// sequences and for those that keep the state between calls.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "ops/op.h"
#include "ops/packed_weights.h"
#include "ops/recurrent.h"

namespace kvik::ops {

// The weights of one direction.
struct PackedDirection {
  std::shared_ptr<const PackedWeights> input;  // [input size, gates · hidden]
  std::array<std::shared_ptr<const PackedWeights>, kMostGates> recurrent;
};

struct RecurrentSizes {
  std::int64_t hidden = 0, input = 0;
};

// The attributes of a node.
struct RecurrentLayer {
  // f, g and h of one direction.
  using Functions = std::array<kernels::CellActivation, 3>;

  // Throws kInvalidModel for attributes that mean nothing.
  RecurrentLayer(const graph::Node& node, CellKind of);

  CellKind kind;
  bool linear_before_reset, coupled;
  std::int64_t hidden;  // attribute hidden_size; -1: left out
  bool reverse_first = false;
  int directions = 1;
  float clip = std::numeric_limits<float>::infinity();
  std::vector<Functions> functions;  // by direction

  // Whether direction d runs from the end.
  bool reverse(int d) const { return d == 1 || reverse_first; }
  // The cell of direction d, without peepholes and recurrent bias.
  RecurrentCell cell(int d, std::int64_t units, const PackedDirection& packed) const;
};

// Adds the recurrent biases [gates, hidden] to those of the inputs, [gates, hidden]. Returns the
// part of `recurrent` that a GRU adds to a product instead, null where there is none.
const float* join_biases(const RecurrentCell& cell, std::int64_t hidden, float* bias,
                         const float* recurrent);

// W [directions, gates · hidden, input] and R [directions, gates · hidden, hidden].
RecurrentSizes check_weights(const Dims& w, const Dims& r, int directions, int gates,
                             std::int64_t hidden_attribute);

// The precision of W or R (see recurrent_weight): that which suits a direction's.
WeightType recurrent_type(const WeightSource& weights, int directions, const WeightCache& cache);

// The weights of a layer, checked, as recurrent_weight() gives them.
PackedDirection pack_recurrent(const WeightSource& w, const WeightSource& r,
                               const RecurrentLayer& layer, int direction, WeightCache& cache,
                               const kernels::KernelTable& table, ThreadPool& pool);

}  // namespace kvik::ops
