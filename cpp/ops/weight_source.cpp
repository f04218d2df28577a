#include "ops/weight_source.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "base/checked.h"
#include "base/fail.h"
#include "base/float16.h"
#include "ops/dispatch.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using graph::ConstantTensor;
using kernels::kGroup;

bool is_nibble(DType dtype) {
  return dtype == DType::kI4 || dtype == DType::kU4;
}

// Element i of a tensor whose size was checked.
template <typename T>
T element(const ConstantTensor& tensor, std::int64_t i) {
  T value;
  std::memcpy(&value, tensor.data.data() + static_cast<std::size_t>(i) * sizeof(T), sizeof(T));
  return value;
}

int integer_element(const ConstantTensor& tensor, std::int64_t i) {
  if (tensor.dtype == DType::kI8) return element<std::int8_t>(tensor, i);
  if (tensor.dtype == DType::kU8) return element<std::uint8_t>(tensor, i);
  const int byte = element<std::uint8_t>(tensor, i / 2);
  const int nibble = i % 2 == 0 ? byte & 15 : byte >> 4;
  return tensor.dtype == DType::kI4 && nibble >= 8 ? nibble - 16 : nibble;
}

float float_element(const ConstantTensor& tensor, std::int64_t i) {
  switch (tensor.dtype) {
    case DType::kF32: return element<float>(tensor, i);
    case DType::kF16: return static_cast<float>(element<Float16>(tensor, i));
    case DType::kBF16: return static_cast<float>(element<BFloat16>(tensor, i));
    default: return static_cast<float>(element<double>(tensor, i));
  }
}

std::int64_t blocks_of(std::int64_t size, std::int64_t block) {
  return size / block + (size % block != 0 ? 1 : 0);
}

// Throws kInternal unless the elements that the dims promise are there.
void check_bytes(const ConstantTensor& tensor) {
  const auto elements = checked_elements(tensor.dims.span());
  const auto bytes = elements ? checked_bytes(*elements, tensor.dtype) : std::nullopt;
  if (!bytes || static_cast<std::size_t>(*bytes) > tensor.data.size()) {
    fail(ErrorCode::kInternal, "a constant of " + tensor.dims.str() + " is cut short");
  }
}

[[noreturn]] void fail_shape(const char* what, const Dims& found, const std::string& expected,
                             const Dims& weights) {
  fail_model(std::string("the ") + what + " has shape " + found.str() + "; expected " + expected +
             " for weights of " + weights.str());
}

}  // namespace

WeightSource::WeightSource(const ConstantTensor& values, const Quantization& how, bool transposed,
                           std::int64_t k)
    : values_(&values), how_(how), transposed_(transposed), k_(k) {
  const Dims& dims = values.dims;
  if (dims.rank != 2 && !(dims.rank == 3 && transposed)) {
    fail_model("the weights must be a constant matrix");
  }
  dims_ = dims.rank == 2 ? dims : Dims{dim_product(dims[0], dims[1]), dims[2]};
  n_ = dims_[transposed ? 0 : 1];
  row_ = dims_[1];
  const std::int64_t stored = dims_[transposed ? 1 : 0];
  if (k < 0 || k > stored || (k < stored && !(transposed && quantized()))) {
    fail_model("the weights have shape " + values.dims.str() + "; expected " + std::to_string(k) +
               " inputs");
  }
  check_bytes(values);
  if (quantized()) {
    check_steps();
  } else if (!dtype_is_float(values.dtype)) {
    fail_dtype(values.dtype);
  }
}

void WeightSource::check_steps() {
  const ConstantTensor& scale = *how_.scale;
  const Dims& dims = dims_;
  const bool narrow = values_->dtype == DType::kI8 || values_->dtype == DType::kU8;
  if (!narrow && !is_nibble(values_->dtype)) fail_dtype(values_->dtype);
  if (!dtype_is_float(scale.dtype)) fail_dtype(scale.dtype);
  if (how_.block < 0) fail_model("the block size is " + std::to_string(how_.block));
  if (how_.axis < 0 || how_.axis > 1) fail_model("the scale's axis is out of range");
  check_bytes(scale);

  const int axis = static_cast<int>(how_.axis);
  const bool along_k = (axis == 1) == transposed_;
  const bool single = scale.dims.rank <= 1 && scale.dims.elements() == 1 && how_.block == 0;
  Dims expected{dims[axis]};
  if (how_.block > 0) {
    expected = dims;
    expected[axis] = blocks_of(dims[axis], how_.block);
  }
  if (!single && !(scale.dims == expected)) {
    fail_shape("scale", scale.dims, expected.str(), dims);
  }
  // Elements between two scales along the axis, and between two of the other axis.
  const auto layout = [&](std::int64_t row) {
    StepLayout out;
    if (single) return out;
    const std::int64_t block = std::max<std::int64_t>(how_.block, 1);
    const std::int64_t along = how_.block == 0 || axis == 1 ? 1 : row;
    const std::int64_t across = how_.block == 0 ? 0 : axis == 1 ? row : 1;
    if (along_k) {
      out = {.k_block = block, .k_stride = along, .n_block = 1, .n_stride = across};
    } else {
      out = {.k_block = 1, .k_stride = across, .n_block = block, .n_stride = along};
    }
    return out;
  };
  scale_at_ = layout(scale.dims.rank == 2 ? scale.dims[1] : 0);
  if (how_.zero == nullptr) return;

  const ConstantTensor& zero = *how_.zero;
  if (zero.dtype != values_->dtype && !dtype_is_float(zero.dtype)) {
    fail_model(std::string("the zero point is ") + dtype_name(zero.dtype) + ", the weights are " +
               dtype_name(values_->dtype));
  }
  Dims padded = scale.dims;
  if (padded.rank == 2 && is_nibble(zero.dtype)) padded[1] += padded[1] % 2;
  const bool same =
      zero.dims == scale.dims || (single && zero.dims.rank <= 1 && zero.dims.elements() == 1);
  if (!same && !(zero.dims == padded)) {
    fail_shape("zero point", zero.dims, scale.dims.str() + ", the scale's,", dims);
  }
  check_bytes(zero);
  zero_at_ = layout(zero.dims.rank == 2 ? zero.dims[1] : 0);
}

WeightSource WeightSource::columns(std::int64_t first, std::int64_t count) const {
  if (!transposed_ || first < 0 || count < 0 || count > n_ || first > n_ - count) {
    fail(ErrorCode::kInternal, "columns of weights that there are not");
  }
  WeightSource part = *this;
  part.first_ += first;
  part.n_ = count;
  return part;
}

std::span<const std::byte> WeightSource::bytes() const {
  if (!transposed_) return values_->data;
  const std::int64_t bits = static_cast<std::int64_t>(dtype_bits(values_->dtype)) * row_;
  const auto begin = static_cast<std::size_t>(first_ * bits / 8);
  const auto end = static_cast<std::size_t>(((first_ + n_) * bits + 7) / 8);
  return values_->data.subspan(begin, end - begin);
}

int WeightSource::integer(std::int64_t i, std::int64_t c) const {
  return integer_element(*values_, offset(i, c));
}

float WeightSource::scale(std::int64_t i, std::int64_t c) const {
  return float_element(*how_.scale, scale_at_(i, first_ + c));
}

float WeightSource::value(std::int64_t i, std::int64_t c) const {
  const int q = integer(i, c);
  if (how_.zero == nullptr) {
    return static_cast<float>(q - static_cast<int>(how_.zero_point)) * scale(i, c);
  }
  const std::int64_t at = zero_at_(i, first_ + c);
  if (dtype_is_float(how_.zero->dtype)) {
    return (static_cast<float>(q) - float_element(*how_.zero, at)) * scale(i, c);
  }
  return static_cast<float>(q - integer_element(*how_.zero, at)) * scale(i, c);
}

// Whether the integers are those of a symmetric panel: around 0 when signed, around the middle of
// their range when not.
bool WeightSource::symmetric() const {
  int middle = 0;
  if (values_->dtype == DType::kU8) middle = 128;
  if (values_->dtype == DType::kU4) middle = 8;
  if (how_.zero == nullptr) return how_.zero_point == middle;
  if (dtype_is_float(how_.zero->dtype)) return false;
  const std::int64_t count = how_.zero->dims.elements();
  // The element that fills up a row's last byte means nothing.
  const std::int64_t row = how_.zero->dims.rank == 2 ? how_.zero->dims[1] : count;
  const std::int64_t used = how_.scale->dims.rank == 2 ? how_.scale->dims[1] : count;
  for (std::int64_t i = 0; i < count; ++i) {
    if (i % row < used && integer_element(*how_.zero, i) != middle) return false;
  }
  return true;
}

WeightType WeightSource::panel_type() const {
  if (!quantized() || how_.scale->dtype == DType::kF64) return WeightType::kF32;
  // One scale for each column, or for each of its groups.
  const bool whole = scale_at_.k_stride == 0 || scale_at_.k_block >= k_;
  const bool nibbles = is_nibble(values_->dtype);
  if (!whole && !(nibbles && scale_at_.k_block % kGroup == 0)) return WeightType::kF32;
  if (!symmetric()) return WeightType::kF32;
  const std::int64_t scales = how_.scale->dims.elements();
  for (std::int64_t i = 0; i < scales; ++i) {
    if (!std::isfinite(float_element(*how_.scale, i))) return WeightType::kF32;
  }
  return nibbles ? WeightType::kI4 : WeightType::kI8;
}

void WeightSource::read_block(std::int64_t first, std::int64_t columns, float* block) const {
  if (columns == 1 && transposed_ && values_->dtype == DType::kF32) {
    if (k_ == 0) return;
    std::memcpy(block,
                values_->data.data() + static_cast<std::size_t>(offset(0, first)) * sizeof(float),
                static_cast<std::size_t>(k_) * sizeof(float));
    return;
  }
  const auto each = [&](auto read) {
    if (transposed_) {
      // A column's elements are adjacent: as many of each in turn as a line of the block's rows
      // stays in L1 for.
      constexpr std::int64_t kTile = 16;
      for (std::int64_t begin = 0; begin < k_; begin += kTile) {
        const std::int64_t end = std::min(begin + kTile, k_);
        for (std::int64_t c = 0; c < columns; ++c) {
          for (std::int64_t i = begin; i < end; ++i) block[i * columns + c] = read(i, first + c);
        }
      }
      return;
    }
    for (std::int64_t i = 0; i < k_; ++i) {
      for (std::int64_t c = 0; c < columns; ++c) block[i * columns + c] = read(i, first + c);
    }
  };
  if (quantized()) {
    return each([&](std::int64_t i, std::int64_t c) { return value(i, c); });
  }
  visit_float(values_->dtype, [&]<typename T>() {
    each([&](std::int64_t i, std::int64_t c) {
      return static_cast<float>(widen(element<T>(*values_, offset(i, c))));
    });
  });
}

void WeightSource::fill_panel(std::int64_t first, std::int64_t columns, int width,
                              std::uint8_t* panel, float* column_scale) const {
  if (is_nibble(values_->dtype)) {
    fill_i4(first, columns, width, panel, column_scale);
  } else {
    fill_i8(first, columns, width, panel, column_scale);
  }
}

void WeightSource::fill_i8(std::int64_t first, std::int64_t columns, int width, std::uint8_t* panel,
                           float* column_scale) const {
  const std::int64_t padded = blocks_of(k_, kGroup) * kGroup;
  std::fill_n(panel, padded * width, std::uint8_t{128});
  std::fill_n(column_scale, width, 0.0F);
  const int shift = values_->dtype == DType::kI8 ? 128 : 0;
  for (std::int64_t c = 0; c < columns; ++c) {
    column_scale[c] = scale(0, first + c);
    for (std::int64_t i = 0; i < k_; ++i) {
      panel[(i / 4 * width + c) * 4 + i % 4] =
          static_cast<std::uint8_t>(integer(i, first + c) + shift);
    }
  }
}

void WeightSource::fill_i4(std::int64_t first, std::int64_t columns, int width, std::uint8_t* panel,
                           float* column_scale) const {
  const std::int64_t group_bytes = (2 + kGroup / 2) * static_cast<std::int64_t>(width);
  const std::int64_t groups = blocks_of(k_, kGroup);
  const int shift = values_->dtype == DType::kI4 ? 8 : 0;
  std::fill_n(panel, groups * group_bytes, std::uint8_t{0x88});
  std::fill_n(column_scale, width, 1.0F);
  for (std::int64_t g = 0; g < groups; ++g) {
    std::memset(panel + g * group_bytes, 0, static_cast<std::size_t>(2 * width));
  }
  for (std::int64_t c = 0; c < columns; ++c) {
    float most = 0.0F;
    for (std::int64_t g = 0; g < groups; ++g) {
      most = std::max(most, std::fabs(scale(g * kGroup, first + c)));
    }
    // The largest scale of a column becomes 2^14 to 2^15, so that as few as possible of the others
    // are subnormal. A power of two: dividing by it and multiplying later rounds nothing.
    const float power =
        most == 0.0F ? 1.0F : std::ldexp(1.0F, std::max(std::ilogb(most) - 14, -126));
    column_scale[c] = power;
    for (std::int64_t g = 0; g < groups; ++g) {
      std::uint8_t* group = panel + g * group_bytes;
      const Float16 stored(scale(g * kGroup, first + c) / power);
      std::memcpy(group + 2 * c, &stored.bits, 2);
      const std::int64_t count = std::min<std::int64_t>(kGroup, k_ - g * kGroup);
      for (std::int64_t i = 0; i < count; ++i) {
        const int u = integer(g * kGroup + i, first + c) + shift;
        std::uint8_t& byte = group[2 * width + (i / 8 * width + c) * 4 + i % 4];
        byte = static_cast<std::uint8_t>(i % 8 < 4 ? (byte & 0xf0) | u : (byte & 0x0f) | u << 4);
      }
    }
  }
}

namespace {

const ConstantTensor& constant_input(const graph::Graph& graph, const graph::Node& node,
                                     std::size_t i, const char* what) {
  const ConstantTensor* tensor = graph.constant(node.input(i));
  if (tensor == nullptr) fail_model(std::string(what) + " must be a constant");
  return *tensor;
}

// The quantisation that a node describes, its scale being input `first`; `whose` precedes the names
// of the attributes where a node has several.
Quantization quantization_of(const graph::Graph& graph, const graph::Node& node, std::size_t first,
                             const std::string& whose = "") {
  Quantization how;
  if (node.input(first) == graph::kNoValue) return how;
  how.scale = &constant_input(graph, node, first, "the scale");
  if (node.input(first + 1) != graph::kNoValue) {
    how.zero = &constant_input(graph, node, first + 1, "the zero point");
  }
  how.zero_point = std::clamp<std::int64_t>(node.int_attr(whose + "zero_point", 0), -255, 255);
  how.axis = node.int_attr(whose + "axis", 0);
  how.block = node.int_attr(whose + "block", 0);
  return how;
}

}  // namespace

ConstantTensor constant_view(const Tensor& tensor) {
  ConstantTensor view;
  view.dtype = tensor.dtype;
  view.dims = tensor.dims;
  const auto bytes = checked_bytes(tensor.elements(), tensor.dtype);
  view.data = {static_cast<const std::byte*>(tensor.data), static_cast<std::size_t>(*bytes)};
  return view;
}

WeightSource linear_weight(const graph::Graph& graph, const graph::Node& node) {
  const ConstantTensor& w = constant_input(graph, node, 1, "the weights");
  if (w.dims.rank != 2) fail_model("the weights must be a constant matrix");
  const bool transposed = node.int_attr("trans_w", 0) != 0;
  return {w, quantization_of(graph, node, 4), transposed,
          node.int_attr("k", w.dims[transposed ? 1 : 0])};
}

WeightSource embedding_table(const graph::Graph& graph, const graph::Node& node) {
  const ConstantTensor& table = constant_input(graph, node, 0, "the table");
  if (table.dims.rank != 2) fail_model("the table must be a constant matrix");
  return {table, quantization_of(graph, node, 2), true, table.dims[1]};
}

WeightSource recurrent_weight(const graph::Graph& graph, const graph::Node& node,
                              std::size_t input) {
  const bool inputs = input == 1;
  const ConstantTensor& w = constant_input(graph, node, input, inputs ? "W" : "R");
  if (w.dims.rank != 3) fail_model(std::string(inputs ? "W" : "R") + " must be of rank 3");
  return {w, quantization_of(graph, node, inputs ? 8 : 10, inputs ? "w_" : "r_"), true, w.dims[2]};
}

}  // namespace kvik::ops
