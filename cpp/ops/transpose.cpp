// Transpose, and the two operators that are a transpose of a reshaped input.
#include <cstring>

#include "ops/families.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

// A permutation whose neighbouring axes that stay neighbours are merged and whose axes of size 1
// are dropped: [B, S, H·D] permutations end with rank 3 at most.
struct MergedTranspose {
  Dims dims;     // of the result
  Dims strides;  // in the input, by result axis
};

MergedTranspose merge(const Dims& in, std::span<const int> perm) {
  const Dims strides = strides_of(in);
  MergedTranspose out;
  for (int axis : perm) {
    if (in[axis] == 1) continue;
    const int last = out.dims.rank - 1;
    if (last >= 0 && out.strides[last] == strides[axis] * in[axis]) {
      out.dims[last] *= in[axis];
      out.strides[last] = strides[axis];
    } else {
      out.dims.push_back(in[axis]);
      out.strides.push_back(strides[axis]);
    }
  }
  if (out.dims.rank == 0) {
    out.dims.push_back(1);
    out.strides.push_back(1);
  }
  return out;
}

// Copies result rows [begin, end), a row being the last merged dimension.
template <typename T>
void copy_rows(const MergedTranspose& t, const T* in, T* out, std::int64_t begin,
               std::int64_t end) {
  const int outer = t.dims.rank - 1;
  const std::int64_t n = t.dims.back(), step = t.strides.back();
  for (std::int64_t row = begin; row < end; ++row) {
    std::int64_t rest = row, offset = 0;
    for (int axis = outer - 1; axis >= 0; --axis) {
      offset += rest % t.dims[axis] * t.strides[axis];
      rest /= t.dims[axis];
    }
    T* to = out + row * n;
    if (step == 1) {
      std::memcpy(to, in + offset, static_cast<std::size_t>(n) * sizeof(T));
    } else {
      for (std::int64_t i = 0; i < n; ++i) to[i] = in[offset + i * step];
    }
  }
}

// Swaps the last two merged axes in tiles of 16 × 16, so that neither side is walked column by
// column. [begin, end) counts bands of 16 result rows of the second-last axis.
template <typename T>
void copy_tiles(const MergedTranspose& t, const T* in, T* out, std::int64_t begin,
                std::int64_t end) {
  constexpr std::int64_t kTile = 16;
  const int r = t.dims.rank - 2;
  const std::int64_t rows = t.dims[r], n = t.dims.back(), step = t.strides.back();
  const std::int64_t bands = (rows + kTile - 1) / kTile;
  for (std::int64_t band = begin; band < end; ++band) {
    std::int64_t rest = band / bands, offset = 0;
    T* plane = out + rest * rows * n;
    for (int axis = r - 1; axis >= 0; --axis) {
      offset += rest % t.dims[axis] * t.strides[axis];
      rest /= t.dims[axis];
    }
    const std::int64_t first = band % bands * kTile, last = std::min(rows, first + kTile);
    for (std::int64_t c = 0; c < n; c += kTile) {
      const std::int64_t stop = std::min(n, c + kTile);
      for (std::int64_t row = first; row < last; ++row) {
        const T* from = in + offset + row * t.strides[r];
        for (std::int64_t i = c; i < stop; ++i) plane[row * n + i] = from[i * step];
      }
    }
  }
}

void transpose(OpContext& context, const Tensor& x, const Dims& in_dims, std::span<const int> perm,
               Tensor& y) {
  if (x.elements() == 0) return;
  const MergedTranspose t = merge(in_dims, perm);
  const std::int64_t n = t.dims.back(), total = t.dims.elements();
  visit_size(x.dtype, [&]<typename T>() {
    if (t.strides.back() != 1 && t.dims.rank >= 2 && t.strides[t.dims.rank - 2] == 1) {
      const std::int64_t rows = t.dims[t.dims.rank - 2];
      const std::int64_t bands = total / (rows * n) * ((rows + 15) / 16);
      parallel_for(context, bands, 16 * n, [&](std::int64_t begin, std::int64_t end) {
        copy_tiles(t, x.as<T>(), y.as<T>(), begin, end);
      });
      return;
    }
    parallel_for(context, total / n, n, [&](std::int64_t begin, std::int64_t end) {
      copy_rows(t, x.as<T>(), y.as<T>(), begin, end);
    });
  });
}

std::unique_ptr<OpKernel> make_transpose(Info info) {
  const auto attribute = info.node.ints_attr("perm");
  return kernel_of([attribute](OpContext& context) {
    const Tensor& x = context.input(0);
    const int rank = x.dims.rank;
    AxisList perm;
    if (!attribute) {
      for (int axis = rank - 1; axis >= 0; --axis) perm.push_back(axis);
    } else {
      check(static_cast<int>(attribute->size()) == rank, [&] {
        return "perm has " + std::to_string(attribute->size()) + " axes but the input has rank " +
               std::to_string(rank);
      });
      normalize_axes(*attribute, rank);  // refuses doubles
      for (std::int64_t axis : *attribute) perm.push_back(normalize_axis(axis, rank));
    }
    Dims dims;
    for (int axis : perm) dims.push_back(x.dims[axis]);
    transpose(context, x, x.dims, perm, context.output(0, x.dtype, dims));
  });
}

std::int64_t block_size_of(Info info) {
  const std::int64_t block = info.node.int_attr("blocksize", 0);
  if (block <= 0) {
    fail(ErrorCode::kInvalidModel,
         "attribute blocksize is " + std::to_string(block) + "; expected a positive number");
  }
  return block;
}

void check_image(const Tensor& x) {
  check(x.dims.rank == 4, [&] {
    return "the input has shape " + x.dims.str() + "; expected [batch, channels, height, width]";
  });
}

std::unique_ptr<OpKernel> make_depth_to_space(Info info) {
  const std::int64_t block = block_size_of(info);
  const bool crd = info.node.string_attr("mode", "DCR") == "CRD";
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    check_image(x);
    const std::int64_t channels = x.dims[1];
    check(channels / block % block == 0 && channels % block == 0, [&] {
      return std::to_string(channels) + " channels cannot be divided by blocksize squared";
    });
    const std::int64_t depth = channels / block / block;
    Tensor& y = context.output(
        0, x.dtype,
        Dims{x.dims[0], depth, dim_product(x.dims[2], block), dim_product(x.dims[3], block)});
    const Dims split = crd ? Dims{x.dims[0], depth, block, block, x.dims[2], x.dims[3]}
                           : Dims{x.dims[0], block, block, depth, x.dims[2], x.dims[3]};
    transpose(context, x, split,
              crd ? std::vector<int>{0, 1, 4, 2, 5, 3} : std::vector<int>{0, 3, 4, 1, 5, 2}, y);
  });
}

std::unique_ptr<OpKernel> make_space_to_depth(Info info) {
  const std::int64_t block = block_size_of(info);
  const bool crd = info.node.string_attr("mode", "DCR") == "CRD";
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    check_image(x);
    check(x.dims[2] % block == 0 && x.dims[3] % block == 0, [&] {
      return "height and width of " + x.dims.str() + " cannot be divided by blocksize " +
             std::to_string(block);
    });
    const std::int64_t height = x.dims[2] / block, width = x.dims[3] / block;
    Tensor& y = context.output(
        0, x.dtype,
        Dims{x.dims[0], dim_product(dim_product(x.dims[1], block), block), height, width});
    transpose(context, x, Dims{x.dims[0], x.dims[1], height, block, width, block},
              crd ? std::vector<int>{0, 1, 3, 5, 2, 4} : std::vector<int>{0, 3, 5, 1, 2, 4}, y);
  });
}

}  // namespace

void register_transpose(Registry& r) {
  r.add("Transpose", make_transpose);
  r.add("DepthToSpace", make_depth_to_space);
  r.add("SpaceToDepth", make_space_to_depth);
}

}  // namespace kvik::ops
