#include "ops/conv_run.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "ops/product.h"
#include "ops/support.h"

namespace kvik::ops {

std::int64_t ConvGrid::points() const {
  std::int64_t product = 1;
  for (int i = 0; i < rank; ++i) product *= axes[static_cast<std::size_t>(i)].points;
  return product;
}

std::int64_t ConvGrid::taps() const {
  std::int64_t product = 1;
  for (int i = 0; i < rank; ++i) product *= axes[static_cast<std::size_t>(i)].taps;
  return product;
}

bool ConvGrid::pointwise() const {
  return std::all_of(axes.begin(), axes.begin() + rank, [](const GridAxis& a) {
    return a.taps == 1 && a.offset == 0 && a.in_step == 1 && a.points == a.in;
  });
}

ConvGrid grid_over(const Window& window) {
  ConvGrid grid;
  grid.rank = window.rank;
  for (int i = 0; i < grid.rank; ++i) {
    const WindowAxis& a = window[i];
    grid.axes[static_cast<std::size_t>(i)] = {.points = a.out,
                                              .in = a.in,
                                              .in_step = a.stride,
                                              .taps = a.kernel,
                                              .offset = -a.pad_begin,
                                              .offset_step = a.dilation,
                                              .out = a.out};
  }
  return grid;
}

// Output o gets input i through tap k where o + pad_begin = i·stride + k·dilation. The taps of a
// phase leave one remainder of o + pad_begin by the stride; in descending order they read ascending
// positions.
ConvGrid grid_of_phase(const Window& window, const std::array<PhaseAxis, kMostSpatial>& phase) {
  ConvGrid grid;
  grid.rank = window.rank;
  for (int i = 0; i < grid.rank; ++i) {
    const WindowAxis& a = window[i];
    const PhaseAxis& p = phase[static_cast<std::size_t>(i)];
    const std::int64_t shift = p.first_tap * a.dilation - a.pad_begin;
    const std::int64_t first = (shift % a.stride + a.stride) % a.stride;
    grid.axes[static_cast<std::size_t>(i)] = {
        .points = first < a.in ? (a.in - first - 1) / a.stride + 1 : 0,
        .in = a.out,
        .in_step = 1,
        .taps = p.taps,
        .offset = (first - shift) / a.stride,
        .offset_step = a.dilation / std::gcd(a.stride, a.dilation),
        .out = a.in,
        .out_first = first,
        .out_step = a.stride};
  }
  return grid;
}

std::int64_t phase_count(std::int64_t kernel, std::int64_t stride, std::int64_t dilation) {
  return std::min(kernel, stride / std::gcd(stride, dilation));
}

std::vector<PhaseAxis> phases_of(std::int64_t kernel, std::int64_t stride, std::int64_t dilation) {
  const std::int64_t step = stride / std::gcd(stride, dilation);
  std::vector<PhaseAxis> phases;
  for (std::int64_t tap = 0; tap < phase_count(kernel, stride, dilation); ++tap) {
    const std::int64_t count = (kernel - tap - 1) / step + 1;
    phases.push_back({tap + (count - 1) * step, -step, count});
  }
  return phases;
}

namespace {

// Floats of rows that are made at a time: they stay in L2 while the panels pass over them.
constexpr std::int64_t kBlockFloats = std::int64_t{192} << 10;
constexpr std::int64_t kMostRows = 384, kLeastRows = 12;

// The transpose of from [rows, columns], in squares that stay in L1. What has the larger stride
// goes in the outer loop: its rows are planes, each in pages of its own.
template <typename From, typename To>
void transpose_planes(const From* from, std::int64_t from_stride, std::int64_t rows,
                      std::int64_t columns, To* to, std::int64_t to_stride) {
  constexpr std::int64_t kSquare = 16;
  const auto square = [&](std::int64_t r, std::int64_t c) {
    const std::int64_t r_end = std::min(rows, r + kSquare), c_end = std::min(columns, c + kSquare);
    for (std::int64_t j = c; j < c_end; ++j) {
      for (std::int64_t i = r; i < r_end; ++i) {
        to[j * to_stride + i] =
            narrow<To>(static_cast<Compute<To>>(widen(from[i * from_stride + j])));
      }
    }
  };
  if (from_stride > to_stride) {
    for (std::int64_t r = 0; r < rows; r += kSquare) {
      for (std::int64_t c = 0; c < columns; c += kSquare) square(r, c);
    }
  } else {
    for (std::int64_t c = 0; c < columns; c += kSquare) {
      for (std::int64_t r = 0; r < rows; r += kSquare) square(r, c);
    }
  }
}

// One phase, on the pool.
class PhaseRun {
 public:
  PhaseRun(OpContext& context, const ConvSizes& sizes, const ConvGrid& grid,
           const ConvWeights& weights, const float* pixels, const float* bias, Tensor& y)
      : context_(context),
        table_(context.kernels()),
        sizes_(sizes),
        grid_(grid),
        weights_(weights),
        pixels_(pixels),
        bias_(bias),
        y_(y),
        depthwise_(weights.groups.empty()),
        pointwise_(!depthwise_ && grid.pointwise()),
        points_(grid.points()),
        taps_(grid.taps()),
        row_(depthwise_ ? sizes.groups : dim_product(taps_, sizes.in_channels)),
        columns_(depthwise_ ? sizes.groups : sizes.out_channels) {
    plan();
  }

  std::size_t bytes() const {
    return checked_product(memory_.bytes(), static_cast<std::size_t>(context_.pool().threads()));
  }
  void run(void* memory);

 private:
  // What one worker has, and which block its rows are of.
  struct Worker {
    WorkspacePlan memory;
    std::int64_t block = -1;
  };

  void plan();
  void run_unit(Worker& worker, std::int64_t unit) const;
  void multiply_block(Worker& worker, std::int64_t group, std::int64_t image, std::int64_t first,
                      std::int64_t count, std::int64_t panel_begin, std::int64_t panel_end,
                      bool same_block) const;
  void sum_block(Worker& worker, std::int64_t image, std::int64_t first, std::int64_t count) const;
  // Calls body(row, q) for the points [first, first + count), q their coordinates.
  template <typename Body>
  void for_points(std::int64_t first, std::int64_t count, Body body) const;
  void fill_row(const float* image, const std::array<std::int64_t, kMostSpatial>& q,
                float* row) const;
  template <typename Body>
  void for_taps(const std::array<std::int64_t, kMostSpatial>& q, int axes, Body body) const;
  void store(const float* block, std::int64_t first_column, std::int64_t columns,
             std::int64_t image, std::int64_t channel, std::int64_t first, std::int64_t count,
             std::int64_t* places) const;

  OpContext& context_;
  const kernels::KernelTable& table_;
  const ConvSizes& sizes_;
  const ConvGrid& grid_;
  const ConvWeights& weights_;
  const float*
      pixels_;         // [batch, groups, in_pixels, in_channels]; depthwise [batch, pixels, groups]
  const float* bias_;  // [groups · out_channels] or null
  Tensor& y_;
  const bool depthwise_, pointwise_;
  const std::int64_t points_, taps_;
  const std::int64_t row_, columns_;     // floats of a row, of a point's output
  std::int64_t rows_ = 0;                // points of a block
  std::int64_t blocks_ = 0;              // of one image and group
  std::int64_t panels_ = 1, parts_ = 1;  // panels of the weights; shares of them that are units
  WorkspacePlan memory_;                 // of one worker
  std::size_t rows_at_ = 0, out_at_ = 0, rounding_at_ = 0, places_at_ = 0;
};

void PhaseRun::plan() {
  const std::int64_t threads = context_.pool().threads();
  const std::int64_t images = sizes_.batch * (depthwise_ ? 1 : sizes_.groups);
  const std::int64_t fitting = kBlockFloats / std::max<std::int64_t>(row_ + columns_, 1);
  rows_ = std::clamp(fitting / kLeastRows * kLeastRows, kLeastRows, kMostRows);
  rows_ = std::min(rows_, std::max<std::int64_t>(points_, 1));
  const auto blocks = [&] { return (points_ + rows_ - 1) / rows_; };
  while (rows_ > 2 * kLeastRows && images * blocks() < 2 * threads) rows_ = (rows_ + 1) / 2;
  blocks_ = blocks();
  if (!depthwise_) {
    panels_ = (columns_ + table_.panel - 1) / table_.panel;
    // Where there are few points each block's panels are shared out; its rows are made again.
    const std::int64_t units = std::max<std::int64_t>(images * blocks_, 1);
    if (units < threads) parts_ = std::clamp<std::int64_t>(2 * threads / units, 1, panels_);
  }
  rows_at_ = memory_.add<float>(pointwise_ || depthwise_ ? 0 : dim_product(rows_, row_));
  out_at_ = memory_.add<float>(dim_product(rows_, columns_));
  if (depthwise_) {
    rounding_at_ = memory_.add<const float*>(taps_);
  } else {
    const RowProduct product{weights_.groups[0].get(), {}, nullptr, 0};
    rounding_at_ = memory_.add_bytes(rounded_bytes(table_, rows_, std::span(&product, 1)));
  }
  places_at_ = memory_.add<std::int64_t>(rows_);
}

void PhaseRun::run(void* memory) {
  const std::int64_t units = sizes_.batch * (depthwise_ ? 1 : sizes_.groups) * blocks_ * parts_;
  const auto body = [&](int worker, std::int64_t begin, std::int64_t end) {
    Worker mine;
    mine.memory = memory_;
    mine.memory.place(static_cast<std::byte*>(memory) +
                      static_cast<std::size_t>(worker) * memory_.bytes());
    for (std::int64_t unit = begin; unit < end; ++unit) run_unit(mine, unit);
  };
  const std::int64_t work = row_ * (depthwise_ ? taps_ : columns_ / parts_) / 8;
  const std::int64_t cost = rows_ * (row_ + columns_ + work);
  if (context_.pool().threads() == 1 || units < 2 || cost < kMinParallelWork / units) {
    return body(0, 0, units);
  }
  context_.pool().run([&](int worker, int workers) {
    const Range range = split_range(units, worker, workers);
    body(worker, range.begin, range.end);
  });
}

void PhaseRun::run_unit(Worker& worker, std::int64_t unit) const {
  const std::int64_t part = unit % parts_, block = unit / parts_;
  const std::int64_t first = block % blocks_ * rows_;
  const std::int64_t count = std::min(rows_, points_ - first);
  const std::int64_t image = block / blocks_;
  const bool same = worker.block == block;
  worker.block = block;
  if (depthwise_) return sum_block(worker, image, first, count);
  const Range panels = split_range(panels_, static_cast<int>(part), static_cast<int>(parts_));
  multiply_block(worker, image % sizes_.groups, image / sizes_.groups, first, count, panels.begin,
                 panels.end, same);
}

template <typename Body>
void PhaseRun::for_points(std::int64_t first, std::int64_t count, Body body) const {
  std::array<std::int64_t, kMostSpatial> q{};
  std::int64_t rest = first;
  for (int i = grid_.rank - 1; i >= 0; --i) {
    const auto at = static_cast<std::size_t>(i);
    q[at] = rest % grid_.axes[at].points;
    rest /= grid_.axes[at].points;
  }
  for (std::int64_t r = 0; r < count; ++r) {
    body(r, q);
    for (int i = grid_.rank - 1; i >= 0; --i) {
      const auto at = static_cast<std::size_t>(i);
      if (++q[at] < grid_.axes[at].points) break;
      q[at] = 0;
    }
  }
}

// Calls body(pixel) for the taps of the first `axes` axes in order, pixel the index of the position
// among those axes, or -1 in the padding.
template <typename Body>
void PhaseRun::for_taps(const std::array<std::int64_t, kMostSpatial>& q, int axes,
                        Body body) const {
  std::array<std::int64_t, kMostSpatial> tap{};
  while (true) {
    std::int64_t pixel = 0;
    for (int i = 0; i < axes; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const GridAxis& a = grid_.axes[at];
      const std::int64_t position = q[at] * a.in_step + a.offset + tap[at] * a.offset_step;
      if (position < 0 || position >= a.in) pixel = -1;
      if (pixel >= 0) pixel = pixel * a.in + position;
    }
    body(pixel);
    int axis = axes - 1;
    for (; axis >= 0; --axis) {
      const auto at = static_cast<std::size_t>(axis);
      if (++tap[at] < grid_.axes[at].taps) break;
      tap[at] = 0;
    }
    if (axis < 0) return;
  }
}

// The pixels under the taps of one point: along the last axis those within the image are one run.
void PhaseRun::fill_row(const float* image, const std::array<std::int64_t, kMostSpatial>& q,
                        float* row) const {
  const GridAxis& last = grid_.axes[static_cast<std::size_t>(grid_.rank - 1)];
  const std::int64_t channels = sizes_.in_channels;
  const std::int64_t begin =
      q[static_cast<std::size_t>(grid_.rank - 1)] * last.in_step + last.offset;
  const auto first_at_least = [&](std::int64_t position) {  // tap
    const std::int64_t distance = position - begin;
    return distance <= 0
               ? 0
               : std::min(last.taps, (distance + last.offset_step - 1) / last.offset_step);
  };
  const std::int64_t from = first_at_least(0), to = std::max(from, first_at_least(last.in));
  const std::int64_t pixel_step = last.offset_step * channels;
  for_taps(q, grid_.rank - 1, [&](std::int64_t line) {
    float* end = row + last.taps * channels;
    if (line < 0 || from == to) {
      std::fill(row, end, 0.0f);
      row = end;
      return;
    }
    std::fill_n(row, from * channels, 0.0f);
    row += from * channels;
    const float* pixel = image + (line * last.in + begin + from * last.offset_step) * channels;
    if (last.offset_step == 1) {
      std::memcpy(row, pixel, static_cast<std::size_t>((to - from) * channels) * sizeof(float));
      row += (to - from) * channels;
    } else {
      for (std::int64_t t = from; t < to; ++t, pixel += pixel_step, row += channels) {
        std::memcpy(row, pixel, static_cast<std::size_t>(channels) * sizeof(float));
      }
    }
    std::fill(row, end, 0.0f);
    row = end;
  });
}

void PhaseRun::multiply_block(Worker& worker, std::int64_t group, std::int64_t image,
                              std::int64_t first, std::int64_t count, std::int64_t panel_begin,
                              std::int64_t panel_end, bool same_block) const {
  const float* pixels =
      pixels_ + (image * sizes_.groups + group) * sizes_.in_pixels * sizes_.in_channels;
  const float* rows = pixels + first * row_;
  if (!pointwise_) {
    float* made = worker.memory.at<float>(rows_at_);
    rows = made;
    if (!same_block) {
      for_points(first, count,
                 [&](std::int64_t r, const auto& q) { fill_row(pixels, q, made + r * row_); });
    }
  }
  kernels::MatmulEpilogue epilogue;
  const std::int64_t channel = group * columns_;
  if (bias_ != nullptr) epilogue.bias = bias_ + channel;
  float* out = worker.memory.at<float>(out_at_);
  const RowProduct product{weights_.groups[static_cast<std::size_t>(group)].get(), epilogue, out,
                           columns_};
  multiply_panels(table_, rows, row_, count, std::span(&product, 1), panel_begin, panel_end,
                  worker.memory.at<std::byte>(rounding_at_));
  const std::int64_t column = panel_begin * table_.panel;
  const std::int64_t end = std::min(columns_, panel_end * table_.panel);
  store(out, column, end - column, image, channel, first, count,
        worker.memory.at<std::int64_t>(places_at_));
}

void PhaseRun::sum_block(Worker& worker, std::int64_t image, std::int64_t first,
                         std::int64_t count) const {
  const float* pixels = pixels_ + image * sizes_.in_pixels * row_;
  const float** taps = worker.memory.at<const float*>(rounding_at_);
  float* out = worker.memory.at<float>(out_at_);
  for_points(first, count, [&](std::int64_t r, const auto& q) {
    const float** tap = taps;
    for_taps(q, grid_.rank,
             [&](std::int64_t pixel) { *tap++ = pixel < 0 ? nullptr : pixels + pixel * row_; });
    table_.weighted_sum_f32(taps, weights_.depthwise.as<float>(), static_cast<int>(taps_), row_,
                            bias_, out + r * columns_);
  });
  store(out, 0, columns_, image, 0, first, count, worker.memory.at<std::int64_t>(places_at_));
}

// Columns of a block [count, columns_] as the output's planes, of which the first column of the
// block is plane `channel` of the image.
void PhaseRun::store(const float* block, std::int64_t first_column, std::int64_t columns,
                     std::int64_t image, std::int64_t channel, std::int64_t first,
                     std::int64_t count, std::int64_t* places) const {
  const std::int64_t planes = sizes_.groups * sizes_.out_channels;
  const std::int64_t plane = (image * planes + channel + first_column) * sizes_.out_pixels;
  const bool dense = std::all_of(grid_.axes.begin(), grid_.axes.begin() + grid_.rank,
                                 [](const GridAxis& a) { return a.points == a.out; });
  visit_float(y_.dtype, [&]<typename T>() {
    T* y = y_.as<T>() + plane;
    if (dense) {
      return transpose_planes(block + first_column, columns_, count, columns, y + first,
                              sizes_.out_pixels);
    }
    for_points(first, count, [&](std::int64_t r, const auto& q) {
      std::int64_t place = 0;
      for (int i = 0; i < grid_.rank; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const GridAxis& a = grid_.axes[at];
        place = place * a.out + a.out_first + q[at] * a.out_step;
      }
      places[r] = place;
    });
    for (std::int64_t c = 0; c < columns; ++c, y += sizes_.out_pixels) {
      const float* from = block + first_column + c;
      for (std::int64_t r = 0; r < count; ++r) {
        y[places[r]] = narrow<T>(static_cast<Compute<T>>(from[r * columns_]));
      }
    }
  });
}

// Every output the bias of its channel, or 0.
void fill_with_bias(OpContext& context, const ConvSizes& sizes, const float* bias, Tensor& y) {
  const std::int64_t planes = sizes.groups * sizes.out_channels;
  visit_float(y.dtype, [&]<typename T>() {
    parallel_for(
        context, sizes.batch * planes, sizes.out_pixels, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t p = begin; p < end; ++p) {
            const T value = narrow<T>(static_cast<Compute<T>>(bias ? bias[p % planes] : 0.0f));
            std::fill_n(y.as<T>() + p * sizes.out_pixels, sizes.out_pixels, value);
          }
        });
  });
}

}  // namespace

void run_convolution(OpContext& context, const ConvSizes& sizes, std::span<const ConvGrid> grids,
                     std::span<const ConvWeights> weights, const Tensor& x, const Tensor* bias,
                     Tensor& y) {
  const bool depthwise = weights[0].groups.empty();
  const std::int64_t images = sizes.batch * (depthwise ? 1 : sizes.groups);
  const std::int64_t channels = depthwise ? sizes.groups : sizes.in_channels;
  const bool widened = x.dtype != DType::kF32;
  const bool as_given = !widened && (channels == 1 || sizes.in_pixels == 1);
  const bool bias_as_given = bias == nullptr || !widened;

  // All phases are planned before the one workspace is asked for, then run in turn.
  WorkspacePlan plan;
  const std::size_t pixels_at = plan.add<float>(as_given ? 0 : x.elements());
  const std::size_t bias_at = plan.add<float>(bias_as_given ? 0 : bias->elements());
  std::size_t most = 0;
  std::int64_t covered = 0;
  for (std::size_t i = 0; i < grids.size(); ++i) {
    covered += grids[i].points();
    most =
        std::max(most, PhaseRun(context, sizes, grids[i], weights[i], nullptr, nullptr, y).bytes());
  }
  const std::size_t workers_at = plan.add_bytes(most);
  plan.place(context.workspace(plan.bytes()));

  const float* pixels = x.as<float>();
  if (!as_given) {
    float* made = plan.at<float>(pixels_at);
    pixels = made;
    // A unit is a stretch of pixels of an image, so that one large image has many.
    constexpr std::int64_t kStretch = 256;
    const std::int64_t stretches = (sizes.in_pixels + kStretch - 1) / kStretch;
    visit_float(x.dtype, [&]<typename T>() {
      parallel_for(context, images * stretches, 2 * channels * std::min(kStretch, sizes.in_pixels),
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t unit = begin; unit < end; ++unit) {
                       const std::int64_t first = unit % stretches * kStretch;
                       const std::int64_t image = unit / stretches * channels * sizes.in_pixels;
                       transpose_planes(x.as<T>() + image + first, sizes.in_pixels, channels,
                                        std::min(kStretch, sizes.in_pixels - first),
                                        made + image + first * channels, channels);
                     }
                   });
    });
  }
  const float* biases = bias == nullptr ? nullptr : bias->as<float>();
  if (!bias_as_given) {
    float* made = plan.at<float>(bias_at);
    biases = made;
    visit_float(bias->dtype, [&]<typename T>() {
      for (std::int64_t i = 0; i < bias->elements(); ++i) {
        made[i] = static_cast<float>(widen(bias->as<T>()[i]));
      }
    });
  }
  if (covered < sizes.out_pixels) fill_with_bias(context, sizes, biases, y);
  for (std::size_t i = 0; i < grids.size(); ++i) {
    if (grids[i].points() == 0) continue;
    PhaseRun(context, sizes, grids[i], weights[i], pixels, biases, y)
        .run(plan.at<std::byte>(workers_at));
  }
}

}  // namespace kvik::ops
