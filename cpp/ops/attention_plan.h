// The sizes, views and visibility of ONNX Attention, checked.
#pragma once

#include <cstdint>

#include "graph/graph.h"
#include "ops/op.h"

namespace kvik::ops {

struct AttentionAttributes {
  bool causal = false;
  std::int64_t q_heads = 0, kv_heads = 0;            // 0: absent (4-D inputs)
  float scale = 0.0f;                                // 0: 1 / sqrt(head_dim)
  float softcap = 0.0f;                              // 0: none
  std::int64_t left_window = -1, right_window = -1;  // opset 25; -1: unbounded
  std::int64_t scores_mode = 0;                      // qk_matmul_output_mode
};

// Throws kInvalidModel for values that the standard does not allow.
AttentionAttributes parse_attention(const graph::Node& node);

// Elements of heads: [B, H, S, d] or [B, S, H·d], addressed alike.
struct HeadView {
  const void* data = nullptr;
  std::int64_t b_stride = 0, h_stride = 0, s_stride = 0;
  std::int64_t length = 0;  // positions

  template <typename T>
  const T* at(std::int64_t b, std::int64_t h, std::int64_t s) const {
    return static_cast<const T*>(data) + b * b_stride + h * h_stride + s * s_stride;
  }
};

struct AttentionPlan {
  std::int64_t batch = 0, heads = 0, kv_heads = 0;
  std::int64_t queries = 0;  // query positions
  std::int64_t total = 0;    // key positions: past and new
  std::int64_t blocks = 0;   // of kKvBlock keys
  int head_dim = 0, value_dim = 0;
  float scale = 0.0f, softcap = 0.0f;
  HeadView q, k, v, past_k, past_v;  // past lengths are 0 where there is none
  bool packed_heads = false;         // 3-D: [B, S, H·d]
  Dims result;

  bool causal = false;
  std::int64_t left_window = -1, right_window = -1;
  const std::int64_t* valid_keys = nullptr;  // nonpad_kv_seqlen [batch], or null

  // The keys [first, last] that query s of batch b may see; empty where last < first.
  void visible(std::int64_t b, std::int64_t s, std::int64_t* first, std::int64_t* last) const;

  std::int64_t out_stride() const { return packed_heads ? heads * value_dim : value_dim; }
  std::int64_t out_offset(std::int64_t b, std::int64_t h, std::int64_t s) const {
    return packed_heads ? ((b * queries + s) * heads + h) * value_dim
                        : ((b * heads + h) * queries + s) * value_dim;
  }
};

// Throws kInvalidArgument that names the two inputs that do not fit.
AttentionPlan plan_attention(OpContext& context, const AttentionAttributes& attributes);

}  // namespace kvik::ops
