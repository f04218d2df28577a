#include "ops/row_keys.h"

#include <array>
#include <limits>
#include <string>

#include "base/fail.h"

namespace kvik::ops {

RowKeys::RowKeys(const graph::RowAttention& attention)
    : mixing_(attention.mixing), window_(attention.window) {
  if (!attention.bias) return;
  bias_.emplace(*attention.bias);
  bias_by_head_ = attention.bias->has_index(0);
}

std::int64_t RowKeys::last(const RowRun& run, std::int64_t i) const {
  switch (mixing_) {
    case graph::Mixing::kEarlier: break;
    case graph::Mixing::kWhole: return run.rows - 1;
    case graph::Mixing::kSource: return run.source_length - 1;
  }
  return run.first_position + i;
}

void RowKeys::fill_bias(std::int64_t head, std::int64_t position, std::int64_t first,
                        std::int64_t last, void* scratch, float* bias) const {
  constexpr int kKeyAxis = 2;
  const std::array<std::int64_t, graph::ExprProgram::kMaxIndices> indices{head, position, 0};
  for (std::int64_t key = first; key <= last; key += graph::ExprProgram::kLanes) {
    const int n =
        static_cast<int>(std::min<std::int64_t>(graph::ExprProgram::kLanes, last - key + 1));
    bool ok = false;
    if (bias_->type() == graph::ExprType::kFloat) {
      ok = bias_->eval(indices, kKeyAxis, key, n, scratch, bias + key);
    } else {
      std::array<std::int64_t, graph::ExprProgram::kLanes> visible{};
      ok = bias_->eval(indices, kKeyAxis, key, n, scratch, visible.data());
      for (int i = 0; i < n; ++i) {
        bias[key + i] = visible[static_cast<std::size_t>(i)] != 0
                            ? 0.0F
                            : -std::numeric_limits<float>::infinity();
      }
    }
    if (!ok) {
      fail(ErrorCode::kInvalidArgument,
           "the attention bias has no value for query position " + std::to_string(position));
    }
  }
}

}  // namespace kvik::ops
