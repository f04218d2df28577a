// One run of an LSTM, GRU or RNN over whole sequences, in the order of its data.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "ops/op.h"
#include "ops/recurrent.h"

namespace kvik::ops {

struct RunSizes {
  std::int64_t steps = 0, batch = 0, input = 0, hidden = 0;
  int directions = 1;
  bool batch_first = false;

  // A tensor [steps, batch, ...] or [batch, steps, ...] as rows: that of step t, sequence b.
  std::int64_t row(std::int64_t t, std::int64_t b) const {
    return batch_first ? b * steps + t : t * batch + b;
  }
  std::int64_t row_step() const { return batch_first ? steps : 1; }  // from b to b + 1
  // The same of states [directions, batch, hidden] or [batch, directions, hidden], and of outputs.
  std::int64_t state_row(int d, std::int64_t b) const {
    return batch_first ? b * directions + d : d * batch + b;
  }
  std::int64_t output_row(std::int64_t t, int d, std::int64_t b) const {
    return batch_first ? (b * steps + t) * directions + d : (t * directions + d) * batch + b;
  }
  std::int64_t output_row_step() const { return batch_first ? steps * directions : 1; }
};

// One direction of a run.
struct RunDirection {
  RecurrentCell cell;
  const PackedWeights* input = nullptr;  // [input, gates · hidden]
  bool reverse = false;
  float* bias = nullptr;            // [gates · hidden]
  float* projected = nullptr;       // [steps · batch, slots · hidden]: x·W + bias
  float* gates = nullptr;           // [batch, slots · hidden], of one step; ragged batches alone
  std::array<float*, 2> buffers{};  // [batch, hidden] each: states by turns, the initial one first
  float* c = nullptr;               // [batch, hidden]
  const float* h = nullptr;         // [batch, hidden]: the state, where sequences have one length
  std::ptrdiff_t h_stride = 0;
};

// A run over all steps. Sequences lie in slots by decreasing length, so that those that go on are
// always the first ones; where all have the length of X, a slot's number is the sequence's.
class SequenceRun {
 public:
  SequenceRun(OpContext& context, const RunSizes& sizes, std::span<RunDirection> directions);
  void read_operands();  // everything but W and R, as floats
  void project();        // the inputs' share of every gate at every step, in one product
  void iterate();        // the steps, which write Y
  void store_states();   // Y_h and Y_c: the states behind the last step of each sequence

 private:
  void place(std::span<RunDirection> directions);
  void sort_slots();
  // The time of step s of the sequence in a slot.
  std::int64_t time_of(const RunDirection& direction, std::int64_t s, std::int64_t slot) const {
    return direction.reverse ? lengths_[slot] - 1 - s : s;
  }
  CellRows rows_at(RunDirection& direction, int d, std::int64_t s, std::int64_t active);
  void store_rows(RunDirection& direction, int d, std::int64_t s, const CellRows& rows);

  OpContext& context_;
  const kernels::KernelTable& table_;
  const RunSizes& sizes_;
  std::span<RunDirection> directions_;
  std::int64_t width_;               // slots · hidden
  bool ragged_ = false;              // not all sequences have the length of X
  std::int64_t* order_ = nullptr;    // [batch]: the sequence in a slot
  std::int64_t* lengths_ = nullptr;  // [batch]: by slot
  float* x_ = nullptr;               // [steps · batch, input]
  void* memory_ = nullptr;           // of the products
  Tensor* y_ = nullptr;              // null: not wanted
};

}  // namespace kvik::ops
