// What a target reads of its source: the keys and values of its attentions, computed once and kept.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "graph/passes/prove_rowwise.h"
#include "kernels/kernels.h"
#include "runtime/kv_cache.h"
#include "runtime/row_encoder.h"

namespace kvik::runtime {

// Of one source. Not changed once it is made: targets of any number of threads share it.
struct Source {
  explicit Source(std::shared_ptr<KvPool> pool) : cache(std::move(pool)) {}
  KvCache cache;
};

class SourceEncoder {
 public:
  // `rows` gives what graph::EncoderDecoder::source says; `target`: the graph and the layout of
  // those that will read it.
  SourceEncoder(std::unique_ptr<RowEncoder> rows, const graph::RowGraph& target,
                const KvLayout& layout, const kernels::KernelTable& kernels);

  const RowProgram& program() const { return rows_->program(); }

  // One call at a time; ids and lengths are within the limits. `records`: see
  // RowEncoder::encode().
  std::vector<std::shared_ptr<const Source>> encode(
      std::span<const EncoderInput> inputs, const CancelCheck& cancelled,
      std::span<const ops::AttentionRecord> records = {});

 private:
  std::shared_ptr<const Source> keep(const float* rows, std::int64_t count) const;

  std::unique_ptr<RowEncoder> rows_;
  std::vector<graph::RowAttention> layers_;  // that read the source
  std::shared_ptr<KvPool> pool_;
  const kernels::KernelTable& kernels_;
  std::vector<float> out_;  // [rows, features] of some sources
};

}  // namespace kvik::runtime
