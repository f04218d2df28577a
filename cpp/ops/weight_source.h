// The right side of a matrix product as the graph holds it: floats, or integers with scales.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/tensor.h"
#include "graph/graph.h"
#include "kernels/kernels.h"
#include "kvik/weights.h"

namespace kvik::ops {

// Where the scale of W[i, c] is: element i / k_block · k_stride + c / n_block · n_stride.
struct StepLayout {
  std::int64_t k_block = 1, k_stride = 0;
  std::int64_t n_block = 1, n_stride = 0;
  std::int64_t operator()(std::int64_t i, std::int64_t c) const {
    return i / k_block * k_stride + c / n_block * n_stride;
  }
};

// How integers are to be understood: W = (q - zero) · scale, with the granularities of
// DequantizeLinear. The attributes `axis`, `block` and `zero_point` of kvik.Linear and
// kvik.Embedding, and their inputs of these names; kvik.LSTM, kvik.GRU and kvik.RNN have them
// twice.
struct Quantization {
  const graph::ConstantTensor* scale = nullptr;  // null: the values are floats
  // Of the values' dtype or a float, and of the scale's shape; rows of 4-bit zero points may have
  // one more to fill a byte. Null: zero_point for all.
  const graph::ConstantTensor* zero = nullptr;
  std::int64_t zero_point = 0;
  std::int64_t axis = 0;   // of the values: that the scales belong to, not negative
  std::int64_t block = 0;  // elements along the axis that share a scale; 0: one each
};

// W [k, n] of a constant. Made by the constructor, which checks every size; read from any thread.
class WeightSource {
 public:
  // `values` is [n, k] when transposed, else [k, n]; integers of 4 or 8 bits where there are
  // scales, else floats. Of rank 3 it is transposed, and its first two axes count as one: n, or the
  // axis 0 of scales, are all of their elements. `k` may be less than the values have: what is
  // beyond pads whole blocks of a transposed matrix. Throws kInvalidModel, kUnsupported for dtypes.
  // Borrows the constants.
  WeightSource(const graph::ConstantTensor& values, const Quantization& how, bool transposed,
               std::int64_t k);

  const graph::ConstantTensor& values() const { return *values_; }
  const Quantization& quantization() const { return how_; }
  std::int64_t k() const { return k_; }
  std::int64_t n() const { return n_; }
  bool transposed() const { return transposed_; }
  // The columns [first, first + count) of a transposed W alone, as a W of their own.
  WeightSource columns(std::int64_t first, std::int64_t count) const;
  // Of the W that columns() was asked of: where it begins there.
  std::int64_t first_column() const { return first_; }
  // The bytes of values() that hold it; at both ends 4 bits of a neighbour's may be among them.
  std::span<const std::byte> bytes() const;
  bool quantized() const { return how_.scale != nullptr; }

  // The integer panels that hold W: kI8 or kI4, else kF32. Panels of int4 round scales to
  // binary16 beside a power of two per column; everything else is exact.
  WeightType panel_type() const;

  // Columns [first, first + columns) as floats [k, columns].
  void read_block(std::int64_t first, std::int64_t columns, float* block) const;
  // The same columns as one panel of integers and its column scales, in the layouts of kernels.h;
  // `width` is the table's panel. For panel_type() kI8 and kI4.
  void fill_panel(std::int64_t first, std::int64_t columns, int width, std::uint8_t* panel,
                  float* column_scale) const;

 private:
  void check_steps();
  std::int64_t offset(std::int64_t i, std::int64_t c) const {
    return transposed_ ? (first_ + c) * row_ + i : i * row_ + c;
  }
  int integer(std::int64_t i, std::int64_t c) const;
  float scale(std::int64_t i, std::int64_t c) const;
  float value(std::int64_t i, std::int64_t c) const;
  bool symmetric() const;
  void fill_i8(std::int64_t first, std::int64_t columns, int width, std::uint8_t* panel,
               float* column_scale) const;
  void fill_i4(std::int64_t first, std::int64_t columns, int width, std::uint8_t* panel,
               float* column_scale) const;

  const graph::ConstantTensor* values_;
  Quantization how_;
  bool transposed_;
  std::int64_t k_, n_, row_;  // row_: elements of a row as stored
  std::int64_t first_ = 0;    // column of the whole that is column 0 here
  Dims dims_;                 // of the values as a matrix
  StepLayout scale_at_, zero_at_;
};

// A tensor's elements as a constant that owns nothing, to be packed for one run.
graph::ConstantTensor constant_view(const Tensor& tensor);

// The weights of a kvik.Linear, and the table of a kvik.Embedding as the [K, V] matrix whose
// columns are its rows. Throw kInvalidModel where an input that must be a constant is none.
WeightSource linear_weight(const graph::Graph& graph, const graph::Node& node);
WeightSource embedding_table(const graph::Graph& graph, const graph::Node& node);
// Input 1 or 2 of a recurrent layer, W or R, as the [inputs, directions · gates · hidden] whose
// columns are its rows: floats, or integers of kvik.LSTM, kvik.GRU, kvik.RNN and kvik.RowRecurrent.
WeightSource recurrent_weight(const graph::Graph& graph, const graph::Node& node,
                              std::size_t input);

}  // namespace kvik::ops
