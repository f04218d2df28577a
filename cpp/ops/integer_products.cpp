// Products of 8-bit integers with zero points: MatMulInteger, QLinearMatMul, ConvInteger,
// QLinearConv. Sums are exact and wrap to 32 bits, as the operators define them.
#include <cmath>
#include <limits>

#include "ops/conv_shape.h"
#include "ops/families.h"
#include "ops/matmul_shape.h"

namespace kvik::ops {

namespace {

void check_bytes_of(const Tensor& t, const char* name) {
  check(t.dtype == DType::kI8 || t.dtype == DType::kU8, [&] {
    return std::string(name) + " has type " + dtype_name(t.dtype) + "; expected int8 or uint8";
  });
}

std::int32_t byte_at(const Tensor& t, std::int64_t i) {
  return t.dtype == DType::kI8 ? t.as<std::int8_t>()[i]
                               : static_cast<std::int32_t>(t.as<std::uint8_t>()[i]);
}

// Zero points or scales: one for all, or one for each row or column of an operand.
class PerChannel {
 public:
  // Input i, omitted where optional; `count` channels, of type `dtype` (undefined: any float).
  PerChannel(OpContext& context, int i, const char* name, std::int64_t count, DType dtype) {
    if (!context.has_input(i)) return;
    values_ = &context.input(i);
    const bool right =
        dtype == DType::kUndefined ? dtype_is_float(values_->dtype) : values_->dtype == dtype;
    const std::int64_t n = values_->elements();
    check(right && (n == 1 || n == count), [&] {
      return std::string(name) + " is " + describe(*values_) + "; expected one value or " +
             std::to_string(count);
    });
    step_ = n == 1 ? 0 : 1;
  }

  std::int32_t zero(std::int64_t channel) const {
    return values_ == nullptr ? 0 : byte_at(*values_, channel * step_);
  }
  double scale(std::int64_t channel) const {
    if (values_ == nullptr) fail(ErrorCode::kInvalidModel, "a scale is missing");
    return visit_float(values_->dtype, [&]<typename T>() {
      return static_cast<double>(widen(values_->as<T>()[channel * step_]));
    });
  }

 private:
  const Tensor* values_ = nullptr;
  std::int64_t step_ = 0;
};

std::int32_t wrapped(std::int64_t sum) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(static_cast<std::uint64_t>(sum)));
}

// The byte that stands for sum · factor, ties to even, within its type.
void store_byte(const Tensor& y, std::int64_t i, double value, std::int32_t zero) {
  const bool is_signed = y.dtype == DType::kI8;
  const double low = is_signed ? -128.0 : 0.0, high = is_signed ? 127.0 : 255.0;
  double rounded = std::nearbyint(value) + static_cast<double>(zero);
  rounded =
      std::isnan(rounded) ? static_cast<double>(zero) : std::min(std::max(rounded, low), high);
  if (is_signed) {
    y.as<std::int8_t>()[i] = static_cast<std::int8_t>(rounded);
  } else {
    y.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(rounded);
  }
}

// Calls store(index, row of A over all matrices, column, sum) for the product of A and B.
template <typename Store>
void multiply_bytes(OpContext& context, const Tensor& a, const Tensor& b, const MatMulShape& s,
                    const PerChannel& a_zero, const PerChannel& b_zero, Store store) {
  parallel_for(
      context, s.batch.elements() * s.m, s.k * s.n, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          const std::int64_t matrix = row / s.m, i = row % s.m;
          const std::int64_t a_at = (matrix_index(matrix, s.batch, s.a_batch) * s.m + i) * s.k;
          const std::int64_t b_at = matrix_index(matrix, s.batch, s.b_batch) * s.k * s.n;
          const std::int32_t za = a_zero.zero(i);
          for (std::int64_t c = 0; c < s.n; ++c) {
            const std::int32_t zb = b_zero.zero(c);
            std::int64_t sum = 0;
            for (std::int64_t k = 0; k < s.k; ++k) {
              sum +=
                  std::int64_t{byte_at(a, a_at + k) - za} * (byte_at(b, b_at + k * s.n + c) - zb);
            }
            store(row * s.n + c, i, c, sum);
          }
        }
      });
}

std::unique_ptr<OpKernel> make_matmul_integer(const NodeInfo&) {
  return kernel_of([](OpContext& context) {
    const Tensor& a = context.input(0);
    const Tensor& b = context.input(1);
    check_bytes_of(a, "A");
    check_bytes_of(b, "B");
    const MatMulShape s = matmul_shape(a.dims, b.dims);
    const PerChannel a_zero(context, 2, "a_zero_point", s.m, a.dtype);
    const PerChannel b_zero(context, 3, "b_zero_point", s.n, b.dtype);
    Tensor& y = context.output(0, DType::kI32, s.result);
    multiply_bytes(context, a, b, s, a_zero, b_zero,
                   [&](std::int64_t at, std::int64_t, std::int64_t, std::int64_t sum) {
                     y.as<std::int32_t>()[at] = wrapped(sum);
                   });
  });
}

std::unique_ptr<OpKernel> make_qlinear_matmul(const NodeInfo&) {
  return kernel_of([](OpContext& context) {
    const Tensor& a = context.input(0);
    const Tensor& b = context.input(3);
    check_bytes_of(a, "a");
    check_bytes_of(b, "b");
    check_bytes_of(context.input(7), "y_zero_point");
    const MatMulShape s = matmul_shape(a.dims, b.dims);
    const DType any = DType::kUndefined, result = context.input(7).dtype;
    const PerChannel a_scale(context, 1, "a_scale", s.m, any);
    const PerChannel a_zero(context, 2, "a_zero_point", s.m, a.dtype);
    const PerChannel b_scale(context, 4, "b_scale", s.n, any);
    const PerChannel b_zero(context, 5, "b_zero_point", s.n, b.dtype);
    const PerChannel y_scale(context, 6, "y_scale", s.m, any);
    const PerChannel y_zero(context, 7, "y_zero_point", s.m, result);
    Tensor& y = context.output(0, result, s.result);
    multiply_bytes(context, a, b, s, a_zero, b_zero,
                   [&](std::int64_t at, std::int64_t row, std::int64_t column, std::int64_t sum) {
                     const double factor =
                         a_scale.scale(row) * b_scale.scale(column) / y_scale.scale(row);
                     store_byte(y, at, static_cast<double>(sum) * factor, y_zero.zero(row));
                   });
  });
}

// Calls store(index, output channel, sum) for the convolution of x with w.
template <typename Store>
void convolve_bytes(OpContext& context, const ConvShape& shape, const ConvPlan& plan,
                    const Tensor& x, const Tensor& w, const PerChannel& x_zero,
                    const PerChannel& w_zero, Store store) {
  const std::int64_t row = w.dims.elements(1, w.dims.rank);  // weights of an output channel
  const std::int32_t zero = x_zero.zero(0);
  convolve_plainly<std::int64_t>(
      context, shape, plan,
      [&](std::int64_t i, std::int64_t j) {
        return std::int64_t{byte_at(x, i) - zero} * (byte_at(w, j) - w_zero.zero(j / row));
      },
      store);
}

std::unique_ptr<OpKernel> make_conv_integer(const NodeInfo& info) {
  return kernel_of([shape = ConvShape(info.node, false)](OpContext& context) {
    const Tensor& x = context.input(0);
    const Tensor& w = context.input(1);
    check_bytes_of(x, "x");
    check_bytes_of(w, "w");
    const ConvPlan plan = shape.plan(x.dims, w.dims);
    const PerChannel x_zero(context, 2, "x_zero_point", 1, x.dtype);
    const PerChannel w_zero(context, 3, "w_zero_point", w.dims[0], w.dtype);
    Tensor& y = context.output(0, DType::kI32, plan.result);
    convolve_bytes(context, shape, plan, x, w, x_zero, w_zero,
                   [&](std::int64_t at, std::int64_t, std::int64_t sum) {
                     y.as<std::int32_t>()[at] = wrapped(sum);
                   });
  });
}

std::unique_ptr<OpKernel> make_qlinear_conv(const NodeInfo& info) {
  return kernel_of([shape = ConvShape(info.node, false)](OpContext& context) {
    const Tensor& x = context.input(0);
    const Tensor& w = context.input(3);
    check_bytes_of(x, "x");
    check_bytes_of(w, "w");
    check_bytes_of(context.input(7), "y_zero_point");
    const ConvPlan plan = shape.plan(x.dims, w.dims);
    const std::int64_t channels = w.dims[0];
    const DType any = DType::kUndefined, result = context.input(7).dtype;
    const PerChannel x_scale(context, 1, "x_scale", 1, any);
    const PerChannel x_zero(context, 2, "x_zero_point", 1, x.dtype);
    const PerChannel w_scale(context, 4, "w_scale", channels, any);
    const PerChannel w_zero(context, 5, "w_zero_point", channels, w.dtype);
    const PerChannel y_scale(context, 6, "y_scale", 1, any);
    const PerChannel y_zero(context, 7, "y_zero_point", 1, result);
    const Tensor* bias = context.has_input(8) ? &context.input(8) : nullptr;
    if (bias != nullptr) {
      check_dtype(*bias, DType::kI32, "B");
      check(bias->dims == Dims{channels}, [&] {
        return "B has shape " + bias->dims.str() + "; expected " + Dims{channels}.str();
      });
    }
    Tensor& y = context.output(0, result, plan.result);
    convolve_bytes(context, shape, plan, x, w, x_zero, w_zero,
                   [&](std::int64_t at, std::int64_t channel, std::int64_t sum) {
                     if (bias != nullptr) sum += bias->as<std::int32_t>()[channel];
                     const double factor =
                         x_scale.scale(0) * w_scale.scale(channel) / y_scale.scale(0);
                     store_byte(y, at, static_cast<double>(sum) * factor, y_zero.zero(0));
                   });
  });
}

}  // namespace

void register_integer_products(Registry& r) {
  r.add("MatMulInteger", make_matmul_integer);
  r.add("QLinearMatMul", make_qlinear_matmul);
  r.add("ConvInteger", make_conv_integer);
  r.add("QLinearConv", make_qlinear_conv);
}

}  // namespace kvik::ops
