// Gather, GatherElements and GatherND.
#include <cstring>

#include "ops/families.h"
#include "ops/indices.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

using Info = const NodeInfo&;

// Slices of x along an axis. x is read as bytes: an embedding table stays where the file has it.
class Gather final : public OpKernel {
 public:
  explicit Gather(Info info) : axis_(info.node.int_attr("axis", 0)) {}

  bool needs_aligned(int i) const override { return i != 0; }

  void run(OpContext& context) const override {
    const Tensor& x = context.input(0);
    const Tensor& indices = context.input(1);
    const int axis = normalize_axis(axis_, x.dims.rank);
    Dims dims;
    for (int i = 0; i < axis; ++i) dims.push_back(x.dims[i]);
    for (std::int64_t dim : indices.dims) dims.push_back(dim);
    for (int i = axis + 1; i < x.dims.rank; ++i) dims.push_back(x.dims[i]);
    Tensor& y = context.output(0, x.dtype, dims);
    const IndexReader index(indices, x.dims[axis]);
    const std::int64_t outer = x.dims.elements(0, axis);
    const std::int64_t inner = x.dims.elements(axis + 1, x.dims.rank);
    const std::int64_t count = indices.elements();
    visit_size(x.dtype, [&]<typename T>() {
      const std::int64_t bytes = inner * static_cast<std::int64_t>(sizeof(T));
      parallel_for(context, outer * count, inner, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          const std::int64_t slice = i / count * x.dims[axis] + index(i % count);
          const auto* from = x.as<std::byte>() + slice * bytes;
          auto* to = y.as<std::byte>() + i * bytes;
          if (inner == 1) {
            std::memcpy(to, from, sizeof(T));
          } else if (inner > 0) {
            std::memcpy(to, from, static_cast<std::size_t>(bytes));
          }
        }
      });
    });
  }

 private:
  std::int64_t axis_;
};

std::unique_ptr<OpKernel> make_gather_elements(Info info) {
  const std::int64_t axis_attribute = info.node.int_attr("axis", 0);
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    const Tensor& indices = context.input(1);
    const int axis = normalize_axis(axis_attribute, x.dims.rank);
    check_indices_fit(x.dims, indices.dims, axis);
    Tensor& y = context.output(0, x.dtype, indices.dims);
    const IndexReader index(indices, x.dims[axis]);
    const Dims strides = strides_of(x.dims);
    visit_size(x.dtype, [&]<typename T>() {
      parallel_for(context, indices.elements(), 8, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          y.as<T>()[i] = x.as<T>()[element_offset(i, indices.dims, strides, axis, index(i))];
        }
      });
    });
  });
}

std::unique_ptr<OpKernel> make_gather_nd(Info info) {
  const std::int64_t batch_attribute = info.node.int_attr("batch_dims", 0);
  return kernel_of([=](OpContext& context) {
    const Tensor& x = context.input(0);
    const Tensor& indices = context.input(1);
    check(indices.dims.rank >= 1, [] { return std::string("indices is a scalar"); });
    const int rank = x.dims.rank, index_rank = indices.dims.rank;
    check(batch_attribute >= 0 && batch_attribute < std::min(rank, index_rank), [&] {
      return "batch_dims is " + std::to_string(batch_attribute) + " for inputs of rank " +
             std::to_string(rank) + " and " + std::to_string(index_rank);
    });
    const int batch = static_cast<int>(batch_attribute);
    for (int axis = 0; axis < batch; ++axis) {
      check(x.dims[axis] == indices.dims[axis], [&] {
        return "data " + x.dims.str() + " and indices " + indices.dims.str() +
               " differ in a batch dimension";
      });
    }
    check(indices.dims.back() >= 1 && indices.dims.back() <= rank - batch,
          [&] { return "indices " + indices.dims.str() + " do not fit data " + x.dims.str(); });
    const int depth = static_cast<int>(indices.dims.back());
    Dims dims;
    for (int axis = 0; axis < index_rank - 1; ++axis) dims.push_back(indices.dims[axis]);
    for (int axis = batch + depth; axis < rank; ++axis) dims.push_back(x.dims[axis]);
    Tensor& y = context.output(0, x.dtype, dims);

    const std::int64_t slice = x.dims.elements(batch + depth, rank);
    const std::int64_t tuples = indices.elements() / depth;
    const std::int64_t per_batch = indices.dims.elements(batch, index_rank - 1);
    const std::int64_t batch_size = x.dims.elements(batch, rank);
    const TupleReader tuple(indices, x.dims, batch, depth);
    visit_size(x.dtype, [&]<typename T>() {
      parallel_for(context, tuples, slice + 4, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          const T* from = x.as<T>() + i / per_batch * batch_size + tuple(i);
          if (slice > 0) {
            std::memcpy(y.as<T>() + i * slice, from, static_cast<std::size_t>(slice) * sizeof(T));
          }
        }
      });
    });
  });
}

}  // namespace

void register_gather(Registry& r) {
  r.add("Gather",
        [](Info info) -> std::unique_ptr<OpKernel> { return std::make_unique<Gather>(info); });
  r.add("GatherElements", make_gather_elements);
  r.add("GatherND", make_gather_nd);
}

}  // namespace kvik::ops
