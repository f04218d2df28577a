// kvik.EvalIndex: values that depend on a row's position alone, computed for the rows at hand.
#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "graph/expr_eval.h"
#include "ops/row_attention.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using graph::ExprProgram;

constexpr int kLanes = ExprProgram::kLanes;

void write(const std::int64_t* values, int n, DType dtype, void* out, std::int64_t at) {
  for (int i = 0; i < n; ++i) {
    if (dtype == DType::kI64) static_cast<std::int64_t*>(out)[at + i] = values[i];
    if (dtype == DType::kI32)
      static_cast<std::int32_t*>(out)[at + i] = static_cast<std::int32_t>(values[i]);
    if (dtype == DType::kBool) static_cast<std::uint8_t*>(out)[at + i] = values[i] != 0;
    if (dtype == DType::kF32) static_cast<float*>(out)[at + i] = static_cast<float>(values[i]);
  }
}

class EvalIndexKernel : public OpKernel {
 public:
  EvalIndexKernel(const graph::Expr& expr, DType dtype, std::span<const std::int64_t> dims)
      : program_(expr), dtype_(dtype), scratch_bytes_(program_.scratch_bytes()), dims_(dims) {
    for (const std::int64_t dim : dims) {
      if (dim != 1) axes_.push_back(dim);
    }
  }

  void run(OpContext& context) const override {
    const Tensor& positions = context.input(0);
    check_dtype(positions, DType::kI64, "positions");
    const std::int64_t rows = positions.elements();
    Dims dims{rows};
    for (const std::int64_t dim : dims_) dims.push_back(dim);
    Tensor& out = context.output(0, dtype_, dims);
    void* scratch = context.workspace(scratch_bytes_);
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t position = positions.as<const std::int64_t>()[row];
      if (!eval_row(position, row, scratch, out)) {
        fail(ErrorCode::kInvalidArgument,
             "position " + std::to_string(position) + " is beyond a table of the model");
      }
    }
  }

 private:
  // All elements of one row, the last axis in runs of kLanes.
  bool eval_row(std::int64_t position, std::int64_t row, void* scratch, Tensor& out) const {
    std::array<std::int64_t, ExprProgram::kMaxIndices> indices{position};
    const int last = axes_.rank;  // index of the innermost axis; 0: the position itself
    const std::int64_t inner = last == 0 ? 1 : axes_.back();
    const std::int64_t outer = axes_.elements(0, std::max(last - 1, 0));
    std::int64_t at = row * outer * inner;
    for (std::int64_t o = 0; o < outer; ++o) {
      std::int64_t rest = o;
      for (int axis = last - 1; axis >= 1; --axis) {
        indices[static_cast<std::size_t>(axis)] = rest % axes_[axis - 1];
        rest /= axes_[axis - 1];
      }
      for (std::int64_t i = 0; i < inner; i += kLanes) {
        const int n = static_cast<int>(std::min<std::int64_t>(kLanes, inner - i));
        if (!eval_run(indices, last, last == 0 ? position : i, n, scratch, out.data, at)) {
          return false;
        }
        at += n;
      }
    }
    return true;
  }

  bool eval_run(std::span<const std::int64_t> indices, int varying, std::int64_t first, int n,
                void* scratch, void* out, std::int64_t at) const {
    if (program_.type() == graph::ExprType::kFloat) {
      return program_.eval(indices, varying, first, n, scratch, static_cast<float*>(out) + at);
    }
    std::array<std::int64_t, kLanes> values{};
    if (!program_.eval(indices, varying, first, n, scratch, values.data())) return false;
    write(values.data(), n, dtype_, out, at);
    return true;
  }

  ExprProgram program_;
  DType dtype_;
  std::size_t scratch_bytes_;
  Dims dims_;  // without the rows
  Dims axes_;  // those of them that have an index: the ones that are not 1
};

}  // namespace

std::unique_ptr<OpKernel> make_eval_index(const NodeInfo& info) {
  const auto at = info.node.attributes.find("expr");
  const graph::Expr* expr =
      at == info.node.attributes.end() ? nullptr : std::get_if<graph::Expr>(&at->second);
  if (expr == nullptr) fail(ErrorCode::kInternal, info.node.label() + ": no attribute 'expr'");
  const std::vector<std::int64_t> dims =
      info.node.ints_attr("dims").value_or(std::vector<std::int64_t>{});
  const graph::ValueId output = info.node.output(0);
  const DType dtype = info.graph.value(output).dtype;
  const bool real = expr->type() == graph::ExprType::kFloat;
  const bool fits = real ? dtype == DType::kF32
                         : dtype == DType::kI64 || dtype == DType::kI32 || dtype == DType::kBool ||
                               dtype == DType::kF32;
  if (!fits) {
    fail(ErrorCode::kUnsupported, info.node.label() + ": cannot compute " + dtype_name(dtype));
  }
  return std::make_unique<EvalIndexKernel>(*expr, dtype, dims);
}

}  // namespace kvik::ops
