// One step of an LSTM, GRU or RNN, for operators over whole sequences and for whoever keeps the
// state between calls. A row's step depends on that row alone: not on the rows beside it, the
// threads, or where in a sequence it stands.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "ops/packed_weights.h"

namespace kvik::ops {

enum class CellKind : std::uint8_t { kRnn, kGru, kLstm };

inline constexpr int kMostGates = 4;

// Gates of a cell, in the order of ONNX: LSTM input, output, forget, new; GRU update, reset, new.
constexpr int gates_of(CellKind kind) {
  return kind == CellKind::kLstm ? 4 : kind == CellKind::kGru ? 3 : 1;
}

// One direction, prepared. Borrows everything it points to.
struct RecurrentCell {
  CellKind kind = CellKind::kRnn;
  std::int64_t hidden = 0;
  kernels::CellActivation f, g, h;
  float clip = std::numeric_limits<float>::infinity();  // of what f and g are given
  bool coupled = false;                                 // LSTM: the forget gate is 1 - input gate
  bool linear_before_reset = false;                     // GRU
  // By gate, each [hidden, hidden] and of one precision: the state's weights, transposed.
  std::array<const PackedWeights*, kMostGates> recurrent{};
  const float* peepholes = nullptr;  // LSTM: input, output, forget: [3, hidden]; null: none
  // GRU with linear_before_reset: added to the new gate's product with the state. [hidden] or null.
  const float* recurrent_bias = nullptr;

  int gates() const { return gates_of(kind); }
  // Blocks of `hidden` floats in a row of gates: those of the gates, and one for scratch where the
  // reset gate is applied to a product.
  int slots() const { return gates() + (kind == CellKind::kGru && linear_before_reset ? 1 : 0); }
};

// Rows of a step. Strides in elements.
struct CellRows {
  std::int64_t rows = 0;
  // [rows, slots · hidden]: x·W + bias of each gate, in their order; overwritten.
  float* gates = nullptr;
  std::ptrdiff_t gates_stride = 0;
  const float* h = nullptr;  // [rows, hidden]: the state before
  std::ptrdiff_t h_stride = 0;
  float* next_h = nullptr;  // [rows, hidden]: the state after; must not overlap h
  std::ptrdiff_t next_h_stride = 0;
  float* c = nullptr;  // [rows, hidden]: an LSTM's cell state, before and after
  std::ptrdiff_t c_stride = 0;
};

struct CellStep {
  const RecurrentCell* cell;
  CellRows rows;
};

// Bytes of the memory that step() needs for up to `rows` rows of such a cell, a multiple of
// kAlignment; 0 where it needs none. Throws kOutOfMemory when that overflows.
std::size_t step_bytes(const kernels::KernelTable& table, const ThreadPool& pool,
                       const RecurrentCell& cell, std::int64_t rows);

// Computes the state after one step of each: cells of one kind and size, independent of one another
// (the directions of a layer). `memory`: kAlignment-aligned, of the step_bytes that the most rows
// of a step ask for. Allocates nothing.
void step(const kernels::KernelTable& table, ThreadPool& pool, std::span<const CellStep> steps,
          void* memory);

}  // namespace kvik::ops
