// Col2Im: the sum of overlapping blocks.
#include <algorithm>

#include "ops/families.h"
#include "ops/window.h"

namespace kvik::ops {

namespace {

// X [batch, channels · taps, windows] to [batch, channels, image...]: each element is added where
// its window and tap lie in the image.
std::unique_ptr<OpKernel> make_col2im(const NodeInfo& info) {
  return kernel_of([attributes = WindowAttributes(info.node)](OpContext& context) {
    const Tensor& x = context.input(0);
    const IntList image = int_list(context.input(1), "image_shape");
    const IntList block = int_list(context.input(2), "block_shape");
    const bool fits = x.dims.rank == 3 && !image.empty() && image.size() == block.size() &&
                      image.size() <= static_cast<std::size_t>(kMostSpatial);
    check(fits, [&] {
      return "X has shape " + x.dims.str() +
             "; expected [batch, channels · block, windows], and as many axes of blocks as of the "
             "image";
    });
    Dims shape{1, 1};
    for (const std::int64_t size : image) shape.push_back(size);
    result_elements(shape);
    const Window window = attributes.over(shape, block.data());
    const std::int64_t taps = window.taps(), windows = window.windows();
    check(x.dims[1] % taps == 0 && x.dims[2] == windows, [&] {
      return "X has shape " + x.dims.str() + "; expected a multiple of " + std::to_string(taps) +
             " rows of " + std::to_string(windows) + " windows";
    });
    Dims dims{x.dims[0], x.dims[1] / taps};
    for (const std::int64_t size : image) dims.push_back(size);
    Tensor& y = context.output(0, x.dtype, dims);
    if (y.elements() == 0) return;
    const std::int64_t pixels = shape.elements();
    visit_numeric(x.dtype, [&]<typename T>() {
      parallel_for(
          context, dims[0] * dims[1], taps * windows, [&](std::int64_t begin, std::int64_t end) {
            std::fill(y.as<T>() + begin * pixels, y.as<T>() + end * pixels, T{});
            for (std::int64_t row = begin * taps; row < end * taps; ++row) {
              T* plane = y.as<T>() + row / taps * pixels;
              const T* from = x.as<T>() + row * windows;
              for (std::int64_t w = 0; w < windows; ++w) {
                std::int64_t pixel = 0, step = 1, tap = row % taps, at = w;
                for (int i = window.rank - 1; i >= 0 && pixel >= 0; --i) {
                  const WindowAxis& a = window[i];
                  const std::int64_t position = a.position(at % a.out, tap % a.kernel);
                  pixel = position < 0 || position >= a.in ? -1 : pixel + position * step;
                  step *= a.in;
                  at /= a.out;
                  tap /= a.kernel;
                }
                if (pixel < 0) continue;
                plane[pixel] =
                    narrow<T>(static_cast<Compute<T>>(widen(plane[pixel]) + widen(from[w])));
              }
            }
          });
    });
  });
}

}  // namespace

void register_col2im(Registry& r) {
  r.add("Col2Im", make_col2im);
}

}  // namespace kvik::ops
