// RotaryEmbedding of ONNX (opset 23) and of com.microsoft, which orders its inputs differently.
#include "ops/families.h"
#include "ops/indices.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

struct Attributes {
  bool interleaved = false;
  std::int64_t heads = 0;    // of 3-D inputs
  std::int64_t rotated = 0;  // rotary_embedding_dim; 0: the whole head
  int positions_input = 3, cos_input = 1, sin_input = 2;
  bool offset_positions = false;  // com.microsoft: one position id is the first row's
};

// The input taken apart: [B, S, H·d] or [B, H, S, d].
struct Layout {
  std::int64_t batch = 0, heads = 0, length = 0, width = 0, half = 0;
  bool packed_heads = false;
};

Layout layout_of(const Tensor& x, const Attributes& a, std::int64_t cos_width) {
  Layout l;
  check(x.dims.rank == 3 || x.dims.rank == 4,
        [&] { return "X has shape " + x.dims.str() + "; expected rank 3 or 4"; });
  l.batch = x.dims[0];
  if (x.dims.rank == 4) {
    l.heads = x.dims[1];
    l.length = x.dims[2];
    l.width = x.dims[3];
  } else {
    l.packed_heads = true;
    l.length = x.dims[1];
    // com.microsoft may leave the heads out; the table then tells the head size.
    const std::int64_t implied = cos_width > 0 ? x.dims[2] / (2 * cos_width) : 0;
    l.heads = a.heads > 0 || !a.offset_positions ? a.heads : implied;
    check(l.heads > 0 && x.dims[2] % l.heads == 0, [&] {
      return "X has shape " + x.dims.str() + ", which cannot be divided into " +
             std::to_string(l.heads) + " heads";
    });
    l.width = x.dims[2] / l.heads;
  }
  const std::int64_t rotated = a.rotated == 0 ? l.width : a.rotated;
  check(rotated <= l.width && rotated % 2 == 0, [&] {
    return "rotary_embedding_dim is " + std::to_string(rotated) + " for heads of " +
           std::to_string(l.width) + "; expected an even number up to the head size";
  });
  check(l.heads <= INT32_MAX && l.width <= INT32_MAX,
        [&] { return "X has shape " + x.dims.str(); });
  l.half = rotated / 2;
  return l;
}

// Which row of the cos and sin tables belongs to position s of batch b.
class RowIndex {
 public:
  RowIndex(OpContext& context, const Attributes& a, const Layout& l, const Dims& table)
      : length_(l.length), rows_(table.elements(0, table.rank - 1)) {
    if (context.has_input(a.positions_input)) {
      const Tensor& ids = context.input(a.positions_input);
      check_dtype(ids, DType::kI64, "position_ids");
      single_ = a.offset_positions && ids.elements() == 1;
      check(single_ || ids.dims == Dims{l.batch, l.length}, [&] {
        return "position_ids has shape " + ids.dims.str() + "; expected [" +
               std::to_string(l.batch) + ", " + std::to_string(l.length) + "]";
      });
      check(table.rank == 2, [&] {
        return "the tables have shape " + table.str() + "; expected [positions, " +
               std::to_string(l.half) + "] where position_ids are given";
      });
      ids_ = ids.as<std::int64_t>();
    } else {
      check(table.rank == 3 && table[0] == l.batch && table[1] == l.length, [&] {
        return "the tables have shape " + table.str() + "; expected [" + std::to_string(l.batch) +
               ", " + std::to_string(l.length) + ", " + std::to_string(l.half) + "]";
      });
    }
  }
  std::int64_t operator()(std::int64_t b, std::int64_t s) const {
    if (ids_ == nullptr) return b * length_ + s;
    std::int64_t row = single_ ? 0 : ids_[b * length_ + s];
    if (single_ && !checked_add(*ids_, s, &row)) row = -1;
    if (row < 0 || row >= rows_) {
      fail(ErrorCode::kInvalidArgument, "position " + std::to_string(row) +
                                            " is out of range for tables of " +
                                            std::to_string(rows_) + " rows");
    }
    return row;
  }

 private:
  std::int64_t length_, rows_;
  const std::int64_t* ids_ = nullptr;
  bool single_ = false;
};

// Rotates `heads` heads at one position. Types other than float32 pass through `row`.
template <typename T>
void rotate(const kernels::KernelTable& table, const Layout& l, std::int64_t heads,
            bool interleaved, const T* x, const T* cos, const T* sin, T* y,
            std::vector<float>& row) {
  const int h = static_cast<int>(heads), d = static_cast<int>(l.width);
  const int half = static_cast<int>(l.half);
  if constexpr (std::is_same_v<T, float>) {
    table.rotary_f32(x, h, d, half, interleaved, cos, sin, y);
  } else {
    const std::size_t n = static_cast<std::size_t>(heads * l.width);
    const std::size_t m = static_cast<std::size_t>(l.half);
    row.resize(n + 2 * m);
    for (std::size_t i = 0; i < n; ++i) row[i] = static_cast<float>(widen(x[i]));
    for (std::size_t i = 0; i < m; ++i) row[n + i] = static_cast<float>(widen(cos[i]));
    for (std::size_t i = 0; i < m; ++i) row[n + m + i] = static_cast<float>(widen(sin[i]));
    table.rotary_f32(row.data(), h, d, half, interleaved, row.data() + n, row.data() + n + m,
                     row.data());
    for (std::size_t i = 0; i < n; ++i) y[i] = narrow<T>(static_cast<Compute<T>>(row[i]));
  }
}

void run_rotary(OpContext& context, const Attributes& a) {
  const Tensor& x = context.input(0);
  const Tensor& cos = context.input(a.cos_input);
  const Tensor& sin = context.input(a.sin_input);
  check_same_dtype(x, cos, "X", "cos_cache");
  check_same_dtype(x, sin, "X", "sin_cache");
  check(cos.dims == sin.dims && cos.dims.rank >= 2, [&] {
    return "cos_cache has shape " + cos.dims.str() + " but sin_cache " + sin.dims.str();
  });
  const Layout l = layout_of(x, a, cos.dims.back());
  check(cos.dims.back() == l.half, [&] {
    return "the tables have shape " + cos.dims.str() + "; expected a last dimension of " +
           std::to_string(l.half) + ", half of what is rotated";
  });
  const RowIndex row_of(context, a, l, cos.dims);
  Tensor& y = context.output(0, x.dtype, x.dims);
  if (x.elements() == 0) return;
  const std::int64_t batch_size = x.dims.elements(1, x.dims.rank);
  const std::int64_t batch_stride = x.contiguous() ? batch_size : x.row_stride;
  visit_float(x.dtype, [&]<typename T>() {
    // One step: all heads of a position where they are adjacent, else one head.
    const std::int64_t heads = l.packed_heads ? l.heads : 1;
    const std::int64_t steps = batch_size / (heads * l.width);
    parallel_for(
        context, l.batch * steps, heads * l.width, [&](std::int64_t begin, std::int64_t end) {
          std::vector<float> scratch;
          for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t b = i / steps, step = i % steps;
            const std::int64_t row = row_of(b, step % l.length);
            const std::int64_t at = step * heads * l.width;
            rotate<T>(context.kernels(), l, heads, a.interleaved, x.as<T>() + b * batch_stride + at,
                      cos.as<T>() + row * l.half, sin.as<T>() + row * l.half,
                      y.as<T>() + b * batch_size + at, scratch);
          }
        });
  });
}

Attributes parse(const graph::Node& node) {
  Attributes a;
  a.interleaved = node.int_attr("interleaved", 0) != 0;
  a.heads = node.int_attr("num_heads", 0);
  a.rotated = node.int_attr("rotary_embedding_dim", 0);
  if (a.heads < 0 || a.rotated < 0) {
    fail(ErrorCode::kInvalidModel, "num_heads and rotary_embedding_dim must not be negative");
  }
  return a;
}

}  // namespace

void register_rotary(Registry& r) {
  r.add("RotaryEmbedding", [](const NodeInfo& info) {
    const Attributes a = parse(info.node);
    return kernel_of([a](OpContext& context) { run_rotary(context, a); }, 1);
  });
  r.add("com.microsoft", "RotaryEmbedding", [](const NodeInfo& info) {
    Attributes a = parse(info.node);
    if (info.node.float_attr("scale", 1.0f) != 1.0f) {
      fail(ErrorCode::kUnsupported, "attribute scale of com.microsoft RotaryEmbedding");
    }
    a.positions_input = 1;
    a.cos_input = 2;
    a.sin_input = 3;
    a.offset_positions = true;
    return kernel_of([a](OpContext& context) { run_rotary(context, a); }, 1);
  });
}

}  // namespace kvik::ops
