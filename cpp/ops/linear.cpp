// kvik.Linear: activation(x · W + bias) + residual with constant weights, made by fusions.
//   inputs:  x [..., K], W (constant), bias [N] (optional), residual [..., N] (optional),
//            scale and zero of W (constants; optional: W then holds integers)
//   attributes: trans_w 0: W is [K, N], 1: W is [N, K];  activation;  with a scale axis, block and
//            zero_point (see ops/weight_source.h), and k where W [N, ...] is wider than K
#include "ops/linear.h"

#include <array>
#include <utility>
#include <vector>

#include "ops/embedding.h"
#include "ops/families.h"
#include "ops/product.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using kernels::Activation;

Activation parse_activation(const std::string& name) {
  if (name == "none") return Activation::kNone;
  if (name == "gelu") return Activation::kGeluErf;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "silu") return Activation::kSilu;
  if (name == "relu") return Activation::kRelu;
  if (name == "tanh") return Activation::kTanh;
  if (name == "sigmoid") return Activation::kSigmoid;
  fail(ErrorCode::kInvalidModel, "attribute activation is '" + name +
                                     "'; expected none, gelu, gelu_tanh, silu, relu, tanh or "
                                     "sigmoid");
}

// A tensor [..., n] as rows of n: contiguous blocks of `rows` rows, `stride` elements between rows
// of a block and `block_stride` between blocks. [rows, 1, n] with a row_stride is one block.
struct Rows {
  std::int64_t blocks = 1, rows = 0;
  std::int64_t stride = 0, block_stride = 0;
};

Rows rows_of(const Tensor& t) {
  const std::int64_t n = t.dims.back();
  if (t.contiguous() || t.dims.rank == 1) return {1, t.dims.elements(0, t.dims.rank - 1), n, 0};
  const std::int64_t inner = t.dims.elements(1, t.dims.rank - 1);
  if (inner == 1) return {1, t.dims[0], t.row_stride, 0};
  return {t.dims[0], inner, n, t.row_stride};
}

class Linear final : public OpKernel {
 public:
  explicit Linear(const NodeInfo& info)
      : activation_(parse_activation(info.node.string_attr("activation", "none"))) {
    const WeightSource source = linear_weight(info.graph, info.node);
    weights_ = info.weights.get(source, linear_type(info.graph, info.node, info.weights),
                                info.kernels, info.pool);
  }

  bool accepts_strided(int i) const override { return i == 0 || i == 3; }
  bool needs_aligned(int i) const override { return i == 0 || i == 2 || i == 3; }

  void run(OpContext& context) const override {
    const Tensor& x = context.input(0);
    const std::int64_t n = weights_->n;
    const Dims dims = output_dims(x);
    kernels::MatmulEpilogue epilogue = epilogue_of(context, 2);
    const Rows from = rows_of(x);
    Rows add;
    if (context.has_input(3)) {
      epilogue.residual = operand(context, 3, dims, "residual");
      add = rows_of(context.input(3));
      epilogue.residual_stride = add.stride;
    }
    float* y = context.output(0, DType::kF32, dims).as<float>();
    if (from.blocks == 1 && add.blocks == 1)
      return product(context, x.as<float>(), from, epilogue, y);

    // One block at a time: whichever input is contiguous moves by a whole block.
    const std::int64_t blocks = x.dims[0], rows = x.dims.elements(1, x.dims.rank - 1);
    const std::int64_t x_step = from.blocks == 1 ? rows * from.stride : from.block_stride;
    const std::int64_t add_step = add.blocks == 1 ? rows * add.stride : add.block_stride;
    Rows block = from;
    block.rows = rows;
    for (std::int64_t b = 0; b < blocks; ++b) {
      kernels::MatmulEpilogue part = epilogue;
      if (part.residual) part.residual += b * add_step;
      product(context, x.as<float>() + b * x_step, block, part, y + b * rows * n);
    }
  }

  OpCost cost(const OpContext& context) const override {
    const Dims& x = context.input(0).dims;
    return weights_->cost(x.elements(0, x.rank - 1));
  }
  OpDescription describe() const override { return weights_->describe(); }

  const PackedWeights& weights() const { return *weights_; }

  // Of the product with x, which is checked.
  Dims output_dims(const Tensor& x) const {
    const std::int64_t k = weights_->k, n = weights_->n;
    check_dtype(x, DType::kF32, "x");
    check(x.dims.rank >= 1 && x.dims.back() == k, [&] {
      return "x has shape " + x.dims.str() + "; expected a last dimension of " + std::to_string(k) +
             " for weights [" + std::to_string(k) + ", " + std::to_string(n) + "]";
    });
    Dims dims = x.dims;
    dims[dims.rank - 1] = n;
    return dims;
  }
  // Without a residual. The bias is input i.
  kernels::MatmulEpilogue epilogue_of(OpContext& context, int i) const {
    kernels::MatmulEpilogue epilogue;
    epilogue.activation = activation_;
    if (context.has_input(i)) epilogue.bias = operand(context, i, Dims{weights_->n}, "bias");
    return epilogue;
  }

 private:
  void product(OpContext& context, const float* x, const Rows& rows,
               const kernels::MatmulEpilogue& epilogue, float* y) const {
    multiply(context, x, rows.stride, rows.rows, {weights_.get(), epilogue, y, weights_->n});
  }

  static const float* operand(OpContext& context, int i, const Dims& expected, const char* name) {
    const Tensor& t = context.input(i);
    check_dtype(t, DType::kF32, name);
    check(t.dims == expected, [&] {
      return std::string(name) + " has shape " + t.dims.str() + "; expected " + expected.str();
    });
    return t.as<float>();
  }

  Activation activation_;
  std::shared_ptr<const PackedWeights> weights_;
};

// Products of the same x. Inputs: x, then each product's bias or nothing; outputs: theirs.
class JoinedLinears final : public OpKernel {
 public:
  explicit JoinedLinears(std::vector<std::unique_ptr<OpKernel>> parts) {
    linears_.reserve(parts.size());
    for (auto& part : parts) {
      linears_.emplace_back(static_cast<const Linear*>(part.release()));
    }
  }

  bool accepts_strided(int i) const override { return i == 0; }

  void run(OpContext& context) const override {
    const Tensor& x = context.input(0);
    std::array<RowProduct, kMostJoinedLinears> products;
    for (std::size_t i = 0; i < linears_.size(); ++i) {
      const Linear& linear = *linears_[i];
      const int at = static_cast<int>(i);
      const Dims dims = linear.output_dims(x);
      products[i] = {&linear.weights(), linear.epilogue_of(context, 1 + at),
                     context.output(at, DType::kF32, dims).as<float>(), dims.back()};
    }
    const Rows rows = rows_of(x);
    if (rows.blocks != 1) fail(ErrorCode::kInternal, "x has rows of rows");
    multiply(context, x.as<float>(), rows.stride, rows.rows,
             std::span(products).first(linears_.size()));
  }

  OpCost cost(const OpContext& context) const override {
    OpCost sum;
    for (const auto& linear : linears_) {
      const OpCost own = linear->cost(context);
      sum.bytes += own.bytes;
      sum.operations += own.operations;
    }
    return sum;
  }
  // "576 x (576 + 192 + 192)".
  OpDescription describe() const override {
    OpDescription whole = linears_.front()->describe();
    std::string columns;
    for (const auto& linear : linears_) {
      columns += (columns.empty() ? "" : " + ") + std::to_string(linear->weights().n);
    }
    whole.shape = std::to_string(linears_.front()->weights().k) + " x (" + columns + ")";
    return whole;
  }

 private:
  std::vector<std::unique_ptr<const Linear>> linears_;
};

}  // namespace

bool is_linear(const OpKernel& kernel) {
  return dynamic_cast<const Linear*>(&kernel) != nullptr;
}

std::unique_ptr<OpKernel> join_linears(std::vector<std::unique_ptr<OpKernel>> parts) {
  return std::make_unique<JoinedLinears>(std::move(parts));
}

void register_linear(Registry& r) {
  r.add("kvik", "Linear", [](const NodeInfo& info) -> std::unique_ptr<OpKernel> {
    return std::make_unique<Linear>(info);
  });
}

}  // namespace kvik::ops
