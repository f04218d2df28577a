#include "onnx/matmul_nbits.h"

#include <string>
#include <utility>

#include "base/checked.h"
#include "kvik/error.h"

namespace kvik::onnx {

namespace {

using graph::ConstantTensor;
using graph::kNoValue;
using graph::Node;
using graph::ValueId;

constexpr std::size_t kA = 0, kB = 1, kScales = 2, kZeroPoints = 3, kGroupIndex = 4, kBias = 5;
constexpr std::int64_t kOnnxFloat = 1, kOnnxFloat16 = 10, kOnnxBFloat16 = 16;

[[noreturn]] void fail(const Node& node, const std::string& what,
                       ErrorCode code = ErrorCode::kInvalidModel) {
  throw Error(code, node.label() + ": " + what);
}

std::int64_t required(const Node& node, const char* key) {
  const std::int64_t value = node.int_attr(key, -1);
  if (value < 1) {
    fail(node, std::string("attribute '") + key + "' is " +
                   (node.has_attr(key) ? std::to_string(value) : "missing") +
                   "; expected a positive number");
  }
  return value;
}

// The sizes of the weights, checked.
struct Sizes {
  std::int64_t n = 0, k = 0, bits = 4, block = 0;
  std::int64_t blocks = 0;  // along K
  std::int64_t padded = 0;  // K in whole blocks

  explicit Sizes(const Node& node)
      : n(required(node, "N")),
        k(required(node, "K")),
        bits(node.int_attr("bits", 4)),
        block(required(node, "block_size")) {
    if (bits != 4 && bits != 8) {
      fail(node, "weights of " + std::to_string(bits) + " bits are not supported; 4 and 8 are",
           ErrorCode::kUnsupported);
    }
    if (block < 16 || (block & (block - 1)) != 0) {
      fail(node, "block_size is " + std::to_string(block) + "; expected a power of two from 16 on");
    }
    blocks = k / block + (k % block != 0 ? 1 : 0);
    if (!checked_mul(blocks, block, &padded)) fail(node, "K is " + std::to_string(k));
  }
};

const ConstantTensor& constant(const Node& node, std::size_t i, const char* name,
                               const Emitter& emitter) {
  const ConstantTensor* tensor = emitter.graph().constant(node.input(i));
  if (tensor != nullptr) return *tensor;
  fail(node, std::string(name) + " is no constant of the file", ErrorCode::kUnsupported);
}

// The tensor as rows [N, row] of `dtype`, on the same bytes. Throws unless it has as many elements
// of its own type as `own_row` a row.
ConstantTensor as_rows(const Node& node, const ConstantTensor& tensor, const char* name,
                       const Sizes& sizes, std::int64_t own_row, DType dtype, std::int64_t row) {
  std::int64_t expected = 0;
  const bool fits = checked_mul(sizes.n, own_row, &expected);
  if (!fits || tensor.dims.elements() != expected) {
    fail(node, std::string(name) + " has shape " + tensor.dims.str() + "; expected " +
                   std::to_string(sizes.n) + " rows of " + std::to_string(own_row));
  }
  ConstantTensor out = tensor;
  out.dtype = dtype;
  out.dims = {sizes.n, row};
  return out;
}

void check_dtype(const Node& node, const ConstantTensor& tensor, const char* name, DType expected) {
  if (tensor.dtype == expected) return;
  fail(node, std::string(name) + " is " + dtype_name(tensor.dtype) + "; expected " +
                 dtype_name(expected));
}

Node cast(const std::string& name, ValueId from, ValueId to, std::int64_t type) {
  Node node;
  node.op = "Cast";
  node.name = name;
  node.inputs = {from};
  node.outputs = {to};
  node.attributes.emplace("to", type);
  return node;
}

// Makes A and the bias float32 and the result what A is, around `linear`.
void emit_in_float32(Node linear, std::int64_t type, Emitter& emitter) {
  const std::string name = linear.name;
  for (const std::size_t i : {std::size_t{0}, std::size_t{2}}) {
    if (linear.input(i) == kNoValue) continue;
    const ValueId wide = emitter.new_value(name + "/float32");
    emitter.emit(cast(name + "/cast", linear.input(i), wide, kOnnxFloat));
    linear.inputs[i] = wide;
  }
  const ValueId output = linear.output(0);
  const ValueId result = emitter.new_value(name + "/result");
  linear.outputs = {result};
  emitter.emit(std::move(linear));
  emitter.emit(cast(name + "/back", result, output, type));
}

}  // namespace

void rewrite_matmul_nbits(Node node, std::int64_t /*opset*/, Emitter& emitter) {
  const Sizes sizes(node);
  if (node.input(kA) == kNoValue || node.outputs.size() != 1) {
    fail(node, "expected an input A and one output");
  }
  if (node.input(kGroupIndex) != kNoValue) {
    fail(node, "g_idx (columns in another order) is not supported: quantise without act-order",
         ErrorCode::kUnsupported);
  }
  const bool nibbles = sizes.bits == 4;
  const DType integers = nibbles ? DType::kU4 : DType::kU8;
  const ConstantTensor& b = constant(node, kB, "B", emitter);
  const ConstantTensor& scales = constant(node, kScales, "scales", emitter);
  check_dtype(node, b, "B", DType::kU8);
  if (scales.dtype != DType::kF32 && scales.dtype != DType::kF16 && scales.dtype != DType::kBF16) {
    fail(node, std::string("scales is ") + dtype_name(scales.dtype) + "; expected floats");
  }
  const std::int64_t row_bytes = nibbles ? sizes.padded / 2 : sizes.padded;

  Node linear;
  linear.domain = "kvik";
  linear.op = "Linear";
  linear.name = node.name;
  linear.outputs = node.outputs;
  linear.inputs = {node.input(kA),
                   emitter.view_constant(node.name + "/B", as_rows(node, b, "B", sizes, row_bytes,
                                                                   integers, sizes.padded)),
                   node.input(kBias), kNoValue,
                   emitter.view_constant(node.name + "/scales",
                                         as_rows(node, scales, "scales", sizes, sizes.blocks,
                                                 scales.dtype, sizes.blocks))};
  linear.attributes = {{"activation", std::string("none")},
                       {"trans_w", std::int64_t{1}},
                       {"axis", std::int64_t{1}},
                       {"block", sizes.block}};
  if (sizes.padded != sizes.k) linear.attributes.emplace("k", sizes.k);
  if (node.input(kZeroPoints) == kNoValue) {
    linear.attributes.emplace("zero_point", std::int64_t{1} << (sizes.bits - 1));
  } else {
    const ConstantTensor& zeros = constant(node, kZeroPoints, "zero_points", emitter);
    // Two a byte, each row padded to whole bytes.
    const std::int64_t own_row = nibbles ? sizes.blocks / 2 + sizes.blocks % 2 : sizes.blocks;
    if (zeros.dtype != DType::kU8) check_dtype(node, zeros, "zero_points", scales.dtype);
    const bool packed = zeros.dtype == DType::kU8;
    const std::int64_t row = packed && nibbles ? 2 * own_row : sizes.blocks;
    linear.inputs.push_back(emitter.view_constant(
        node.name + "/zero_points",
        as_rows(node, zeros, "zero_points", sizes, packed ? own_row : sizes.blocks,
                packed ? integers : zeros.dtype, row)));
  }
  if (scales.dtype == DType::kF32) return emitter.emit(std::move(linear));
  emit_in_float32(std::move(linear), scales.dtype == DType::kF16 ? kOnnxFloat16 : kOnnxBFloat16,
                  emitter);
}

}  // namespace kvik::onnx
