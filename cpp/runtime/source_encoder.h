// What a target reads of its source: the keys and values of its attentions and the first states of
// its recurrent layers, computed once and kept.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "graph/passes/prove_rowwise.h"
#include "kernels/kernels.h"
#include "runtime/executor.h"
#include "runtime/kv_cache.h"
#include "runtime/row_encoder.h"

namespace kvik::runtime {

// Of one source. Not changed once it is made: targets of any number of threads share it.
struct Source {
  explicit Source(std::shared_ptr<KvPool> pool) : cache(std::move(pool)) {}
  std::int64_t bytes() const {
    return cache.bytes() + static_cast<std::int64_t>(states.size() * sizeof(float));
  }
  KvCache cache;
  std::vector<float> states;  // of RowRun::source_states
};

class SourceEncoder {
 public:
  virtual ~SourceEncoder() = default;
  // One call at a time; ids and lengths are within the limits.
  virtual std::vector<std::shared_ptr<const Source>> encode(std::span<const EncoderInput> inputs,
                                                            const CancelCheck& cancelled) = 0;

 protected:
  // `layout`: of those that will read the sources.
  SourceEncoder(const graph::EncoderDecoder& proved, const KvLayout& layout,
                const kernels::KernelTable& kernels);
  // Keys or values as floats: row i of head h at data + i · row + h · head.
  struct Plane {
    const float* data = nullptr;
    std::int64_t row = 0;
    std::int64_t head = 0;
  };
  std::shared_ptr<Source> new_source(std::int64_t count) const;
  // Stores those of layer `index`, of all positions of the source.
  void store(Source& source, std::size_t index, const Plane& k, const Plane& v) const;

  std::vector<graph::RowAttention> layers_;  // that read the source
  std::vector<graph::EncoderDecoder::State> states_;

 private:
  std::shared_ptr<KvPool> pool_;
  const kernels::KernelTable& kernels_;
};

// By the rows of graph::EncoderDecoder::source: many sources together.
class RowSourceEncoder final : public SourceEncoder {
 public:
  RowSourceEncoder(std::unique_ptr<RowEncoder> rows, const graph::EncoderDecoder& proved,
                   const KvLayout& layout, const kernels::KernelTable& kernels);
  std::vector<std::shared_ptr<const Source>> encode(std::span<const EncoderInput> inputs,
                                                    const CancelCheck& cancelled) override;

 private:
  std::shared_ptr<const Source> keep(const float* rows, std::int64_t count) const;

  std::unique_ptr<RowEncoder> rows_;
  std::vector<float> out_;  // [rows, features] of some sources
};

// By the graph as it stands, a source at a time and without padding: whatever the source computes,
// it depends on no other.
class GraphSourceEncoder final : public SourceEncoder {
 public:
  // The graph must outlive the encoder.
  GraphSourceEncoder(const graph::Graph& graph, const Engine& engine,
                     const graph::EncoderDecoder& proved, const KvLayout& layout);
  std::vector<std::shared_ptr<const Source>> encode(std::span<const EncoderInput> inputs,
                                                    const CancelCheck& cancelled) override;

 private:
  std::shared_ptr<const Source> encode_one(std::span<const std::int64_t> ids,
                                           const CancelCheck& cancelled) const;
  Plane plane_of(const OwnedTensor& result, const graph::RowAttention& layer, int dim,
                 std::int64_t tokens) const;

  const graph::Graph& graph_;
  std::vector<graph::EncoderDecoder::Input> inputs_;
  GraphExecutor executor_;
};

}  // namespace kvik::runtime
