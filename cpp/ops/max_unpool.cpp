// MaxUnpool: the inverse of MaxPool, zeros where nothing was the largest.
#include <algorithm>

#include "ops/families.h"
#include "ops/window.h"

namespace kvik::ops {

namespace {

// Puts the elements of X back where MaxPool's indices say, zeros elsewhere. The indices count in
// the shape that the attributes give, whatever the output's.
std::unique_ptr<OpKernel> make_max_unpool(const NodeInfo& info) {
  return kernel_of([attributes = pool_attributes(info.node)](OpContext& context) {
    const Tensor& x = context.input(0);
    const Tensor& indices = context.input(1);
    check_dtype(indices, DType::kI64, "I");
    check(indices.dims == x.dims, [&] {
      return "I has shape " + indices.dims.str() + "; expected " + x.dims.str() + ", that of X";
    });
    const Window window = attributes.transposed(x.dims, nullptr, {}, {});
    Dims pooled = x.dims;
    for (int i = 0; i < window.rank; ++i) pooled[2 + i] = window[i].in;
    const std::int64_t limit = result_elements(pooled);
    Dims dims = pooled;
    if (context.has_input(2)) {
      const IntList shape = int_list(context.input(2), "output_shape");
      check(shape.size() == static_cast<std::size_t>(pooled.rank), [&] {
        return "output_shape has " + std::to_string(shape.size()) + " elements for X " +
               x.dims.str();
      });
      dims = Dims(std::span(shape.begin(), shape.size()));
    }
    for (int i = 0; i < dims.rank; ++i) {
      check(dims[i] >= pooled[i], [&] {
        return "output_shape is " + dims.str() + "; expected at least " + pooled.str();
      });
    }
    Tensor& y = context.output(0, x.dtype, dims);
    const Dims strides = strides_of(dims);
    visit_size(x.dtype, [&]<typename T>() {
      std::fill_n(y.as<T>(), y.elements(), T{});
      for (std::int64_t i = 0; i < x.elements(); ++i) {
        std::int64_t index = indices.as<std::int64_t>()[i];
        check(index >= 0 && index < limit, [&] {
          return "I has " + std::to_string(index) + "; expected indices into " + pooled.str();
        });
        std::int64_t place = 0;
        for (int axis = pooled.rank - 1; axis >= 0; --axis) {
          place += index % pooled[axis] * strides[axis];
          index /= pooled[axis];
        }
        y.as<T>()[place] = x.as<T>()[i];
      }
    });
  });
}

}  // namespace

void register_max_unpool(Registry& r) {
  r.add("MaxUnpool", make_max_unpool);
}

}  // namespace kvik::ops
