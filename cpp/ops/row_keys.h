// Which keys a row's query sees in a row attention, and what is added to their scores.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "graph/expr_eval.h"
#include "graph/passes/prove_rowwise.h"
#include "ops/row_batch.h"

namespace kvik::ops {

class RowKeys {
 public:
  explicit RowKeys(const graph::RowAttention& attention);

  bool from_source() const { return mixing_ == graph::Mixing::kSource; }
  // The blocks that hold the keys and values of a run's queries.
  const KvTables& tables(const RowRun& run) const { return from_source() ? run.source : run.keys; }

  // The first and the last position that the run's query i sees, and how many it sees.
  std::int64_t first(const RowRun& run, std::int64_t i) const {
    return window_ > 0 ? std::max<std::int64_t>(0, run.first_position + i - window_ + 1) : 0;
  }
  std::int64_t last(const RowRun& run, std::int64_t i) const;
  std::int64_t seen(const RowRun& run, std::int64_t i) const {
    return last(run, i) - first(run, i) + 1;
  }

  bool windowed() const { return window_ > 0; }  // else every query sees the first key
  bool biased() const { return bias_.has_value(); }
  bool biased_by_head() const { return bias_by_head_; }
  std::size_t scratch_bytes() const { return bias_ ? bias_->scratch_bytes() : 0; }
  // The bias of one query and head for the keys [first, last], at bias[first ...]; `scratch`:
  // scratch_bytes() of memory. Throws kInvalidArgument where the bias has no value.
  void fill_bias(std::int64_t head, std::int64_t position, std::int64_t first, std::int64_t last,
                 void* scratch, float* bias) const;

 private:
  graph::Mixing mixing_;
  std::int64_t window_;
  std::optional<graph::ExprProgram> bias_;
  bool bias_by_head_ = false;  // it differs between heads
};

}  // namespace kvik::ops
