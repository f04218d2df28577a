// DequantizeLinear and QuantizeLinear (per tensor, per axis, blocked), DynamicQuantizeLinear.
#include <cmath>
#include <limits>

#include "ops/families.h"
#include "ops/onnx_dtype.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

// Which scale belongs to element i of a tensor. Three granularities:
//   per tensor: one scale;  per axis: scale [dim];
//   blocked: scale has x's shape but ceil(dim / block) along the axis.
struct ScaleIndex {
  std::int64_t dim = 1, inner = 1;     // size of the axis; elements after it
  std::int64_t block = 0, blocks = 1;  // elements that share a scale along the axis (0: per axis)
  bool single = false;

  std::int64_t operator()(std::int64_t i) const {
    if (single) return 0;
    const std::int64_t along = i / inner % dim;
    if (block == 0) return along;
    return (i / inner / dim * blocks + along / block) * inner + i % inner;
  }
};

ScaleIndex scale_index(const Dims& x, const Dims& scale, std::int64_t axis_attribute,
                       std::int64_t block) {
  ScaleIndex index;
  if (scale.elements() == 1 && scale.rank <= 1 && block == 0) {
    index.single = true;
    return index;
  }
  const int axis = normalize_axis(axis_attribute, x.rank);
  index.dim = x[axis];
  index.inner = x.elements(axis + 1, x.rank);
  index.block = block;
  const auto refuse = [&](const std::string& expected) {
    fail(ErrorCode::kInvalidArgument, "the scale has shape " + scale.str() + "; expected " +
                                          expected + " for an input of " + x.str());
  };
  if (block == 0) {
    if (!(scale == Dims{index.dim})) refuse("[" + std::to_string(index.dim) + "]");
    return index;
  }
  index.blocks = index.dim / block + (index.dim % block != 0 ? 1 : 0);
  Dims expected = x;
  expected[axis] = index.blocks;
  if (!(scale == expected)) refuse(expected.str());
  return index;
}

void check_quantised(DType dtype) {
  switch (dtype) {
    case DType::kI4:
    case DType::kU4:
    case DType::kI8:
    case DType::kU8:
    case DType::kI16:
    case DType::kU16:
    case DType::kI32: return;
    default: fail_dtype(dtype);
  }
}

// Element i as an integer, for the types that quantised tensors have.
std::int32_t integer_at(const Tensor& x, std::int64_t i) {
  switch (x.dtype) {
    case DType::kI8: return x.as<std::int8_t>()[i];
    case DType::kU8: return x.as<std::uint8_t>()[i];
    case DType::kI16: return x.as<std::int16_t>()[i];
    case DType::kU16: return x.as<std::uint16_t>()[i];
    case DType::kI32: return x.as<std::int32_t>()[i];
    default: break;
  }
  const int nibble = (x.as<std::uint8_t>()[i / 2] >> (i % 2 * 4)) & 0xf;
  return x.dtype == DType::kI4 && nibble >= 8 ? nibble - 16 : nibble;
}

// Element i as a float, for floating-point tensors and int32.
float float_at(const Tensor& x, std::int64_t i) {
  switch (x.dtype) {
    case DType::kF32: return x.as<float>()[i];
    case DType::kF16: return static_cast<float>(x.as<Float16>()[i]);
    case DType::kBF16: return static_cast<float>(x.as<BFloat16>()[i]);
    case DType::kF64: return static_cast<float>(x.as<double>()[i]);
    default: return static_cast<float>(x.as<std::int32_t>()[i]);
  }
}

// The scales and zero points of a node, whatever their types, read one by one: there are few of
// them, or they are read once for every element of a block.
class Steps {
 public:
  Steps(OpContext& context, const Tensor& scale)
      : scale_(scale), zero_(context.has_input(2) ? &context.input(2) : nullptr) {
    if (!dtype_is_float(scale.dtype)) fail_dtype(scale.dtype);
    if (zero_ == nullptr) return;
    check(zero_->elements() == scale.elements(), [&] {
      return "the zero point has shape " + zero_->dims.str() + "; expected " + scale.dims.str() +
             ", the scale's";
    });
    check_quantised(zero_->dtype);
  }

  float scale(std::int64_t i) const { return float_at(scale_, i); }
  std::int32_t zero(std::int64_t i) const { return zero_ == nullptr ? 0 : integer_at(*zero_, i); }

 private:
  const Tensor& scale_;
  const Tensor* zero_;
};

void check_block(std::int64_t block) {
  if (block < 0) {
    fail(ErrorCode::kInvalidModel, "attribute block_size is " + std::to_string(block));
  }
}

// y = (x - zero) · scale
std::unique_ptr<OpKernel> make_dequantize(Info info) {
  const std::int64_t axis = info.node.int_attr("axis", 1);
  const std::int64_t block = info.node.int_attr("block_size", 0);
  const std::int64_t type = info.node.int_attr("output_dtype", 0);
  check_block(block);
  const DType fixed = type == 0 ? DType::kUndefined : dtype_from_onnx(type);
  if (info.constant(0) != nullptr && info.constant(1) != nullptr) {  // a weight: reported at once
    scale_index(info.constant(0)->dims, info.constant(1)->dims, axis, block);
  }
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    const Tensor& scale = context.input(1);
    const ScaleIndex index = scale_index(x.dims, scale.dims, axis, block);
    if (context.has_input(2)) check_same_dtype(x, context.input(2), "x", "the zero point");
    const DType dtype = fixed == DType::kUndefined ? scale.dtype : fixed;
    Tensor& y = context.output(0, dtype, x.dims);
    check_quantised(x.dtype);
    const Steps steps(context, scale);
    visit_float(dtype, [&]<typename T>() {
      parallel_for(context.pool(), x.elements(), 4, 64, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          const std::int64_t s = index(i);
          // In 64 bits: the difference of two int32 may not fit.
          const std::int64_t distance = std::int64_t{integer_at(x, i)} - steps.zero(s);
          const float value = static_cast<float>(distance) * steps.scale(s);
          y.as<T>()[i] = narrow<T>(static_cast<Compute<T>>(value));
        }
      });
    });
  });
}

// The range of a quantised type.
struct Limits {
  std::int64_t low = 0, high = 0;
};

Limits limits_of(DType dtype) {
  switch (dtype) {
    case DType::kI4: return {-8, 7};
    case DType::kU4: return {0, 15};
    case DType::kI8: return {-128, 127};
    case DType::kU8: return {0, 255};
    case DType::kI16: return {-32768, 32767};
    case DType::kU16: return {0, 65535};
    default: fail_dtype(dtype);
  }
}

void store_quantised(Tensor& y, std::int64_t i, std::int64_t value) {
  switch (y.dtype) {
    case DType::kI8:
    case DType::kU8: y.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(value); return;
    case DType::kI16:
    case DType::kU16: y.as<std::uint16_t>()[i] = static_cast<std::uint16_t>(value); return;
    default: {
      std::uint8_t& byte = y.as<std::uint8_t>()[i / 2];
      const auto nibble = static_cast<unsigned>(value) & 0xfu;
      byte = static_cast<std::uint8_t>(i % 2 == 0 ? nibble : (byte | (nibble << 4)));
    }
  }
}

// y = saturate(round(x / scale) + zero), to nearest, ties to even
std::unique_ptr<OpKernel> make_quantize(Info info) {
  const std::int64_t axis = info.node.int_attr("axis", 1);
  const std::int64_t block = info.node.int_attr("block_size", 0);
  const std::int64_t type = info.node.int_attr("output_dtype", 0);
  check_block(block);
  const DType fixed = type == 0 ? DType::kUndefined : dtype_from_onnx(type);
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    const Tensor& scale = context.input(1);
    const ScaleIndex index = scale_index(x.dims, scale.dims, axis, block);
    DType dtype = fixed;
    if (dtype == DType::kUndefined) {
      dtype = context.has_input(2) ? context.input(2).dtype : DType::kU8;
    }
    const Limits limits = limits_of(dtype);
    Tensor& y = context.output(0, dtype, x.dims);
    if (x.dtype != DType::kI32 && !dtype_is_float(x.dtype)) fail_dtype(x.dtype);
    const Steps steps(context, scale);
    for (std::int64_t i = 0; i < x.elements(); ++i) {
      const std::int64_t s = index(i);
      // In the input's precision: float32 division, as the standard's reference does.
      const float quotient = float_at(x, i) / steps.scale(s);
      const double value =
          std::nearbyint(static_cast<double>(quotient)) + static_cast<double>(steps.zero(s));
      const double low = static_cast<double>(limits.low), high = static_cast<double>(limits.high);
      // NaN has no integer: the lowest, as other engines give.
      store_quantised(
          y, i,
          std::isnan(value) ? limits.low : static_cast<std::int64_t>(std::clamp(value, low, high)));
    }
  });
}

// uint8 with a scale and zero point found from the input's range, which always holds 0.
std::unique_ptr<OpKernel> make_dynamic_quantize(Info) {
  return kernel_of([](OpContext& context) {
    const Tensor& x = context.input(0);
    check_dtype(x, DType::kF32, "x");
    const float* in = x.as<float>();
    float low = 0.0f, high = 0.0f;
    for (std::int64_t i = 0; i < x.elements(); ++i) {
      low = std::min(low, in[i]);
      high = std::max(high, in[i]);
    }
    const float scale = high == low ? 1.0f : (high - low) / 255.0f;
    const float zero = std::clamp(std::nearbyint(-low / scale), 0.0f, 255.0f);
    std::uint8_t* y = context.output(0, DType::kU8, x.dims).as<std::uint8_t>();
    for (std::int64_t i = 0; i < x.elements(); ++i) {
      const float steps = std::nearbyint(in[i] / scale) + zero;
      y[i] = static_cast<std::uint8_t>(steps >= 0.0f ? std::min(steps, 255.0f) : 0.0f);
    }
    if (context.wants_output(1)) *context.output(1, DType::kF32, Dims{}).as<float>() = scale;
    if (context.wants_output(2)) {
      *context.output(2, DType::kU8, Dims{}).as<std::uint8_t>() = static_cast<std::uint8_t>(zero);
    }
  });
}

}  // namespace

void register_quantize(Registry& r) {
  r.add("DequantizeLinear", make_dequantize);
  r.add("QuantizeLinear", make_quantize);
  r.add("DynamicQuantizeLinear", make_dynamic_quantize);
}

}  // namespace kvik::ops
