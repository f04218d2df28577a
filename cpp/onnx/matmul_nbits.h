// com.microsoft MatMulNBits: a product with weights of 4 or 8 bits in blocks.
#pragma once

#include <cstdint>

#include "onnx/rewrite.h"

namespace kvik::onnx {

// y = A · dequantised(B) + bias as a kvik.Linear on the file's own bytes.
//   A: float [..., K]; B: uint8 [N, blocks, block_size · bits / 8], blocks of K, low bits first;
//   scales: [N, blocks] or flat; zero_points: none (the middle of the range), packed like B with
//   each row padded to a byte, or floats like the scales; bias: [N].
// Throws kInvalidModel for sizes that do not fit together, kUnsupported for g_idx, other numbers of
// bits, and weights that are no constants.
void rewrite_matmul_nbits(graph::Node node, std::int64_t opset, Emitter& emitter);

}  // namespace kvik::onnx
