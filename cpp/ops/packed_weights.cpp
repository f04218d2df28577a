#include "ops/packed_weights.h"

#include <cstring>
#include <string>

#include "base/float16.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

// What is smaller stays in fp32 whatever the cache's precision (see kvik/weights.h).
constexpr std::int64_t kLeastInputs = kernels::kGroup;
constexpr std::int64_t kLeastElements = 4096;
// Sums of products of bytes stay below 2^31 up to here.
constexpr std::int64_t kMostInputs = std::int64_t{1} << 17;

}  // namespace

WeightType packed_type(WeightType wanted, std::int64_t k, std::int64_t n) {
  const bool worth_it =
      k >= kLeastInputs && n > 0 && n >= (kLeastElements + k - 1) / k && k <= kMostInputs;
  return worth_it ? wanted : WeightType::kF32;
}

std::size_t panel_bytes(WeightType type, std::int64_t k, int width) {
  using kernels::kGroup;
  const std::int64_t groups = (k + kGroup - 1) / kGroup;
  switch (type) {
    case WeightType::kF32: break;
    case WeightType::kBF16: return static_cast<std::size_t>((k + 1) / 2 * 2 * width) * 2;
    case WeightType::kI8: return static_cast<std::size_t>(groups * kGroup * width);
    case WeightType::kI4: return static_cast<std::size_t>(groups * (2 + kGroup / 2) * width);
  }
  return checked_product(static_cast<std::size_t>(k * width), sizeof(float));
}

PanelColumn panel_column(const PackedWeights& weights, int width, std::int64_t c) {
  const std::size_t panel = panel_bytes(weights.type, weights.k, width);
  return {.type = weights.type,
          .panel = weights.panels.as<std::uint8_t>() + static_cast<std::size_t>(c / width) * panel,
          .width = width,
          .column = c % width,
          .column_scale = weights.column_scale.as<float>()[c],
          .k = weights.k};
}

namespace {

// Calls each(i, q, scale) for the elements of a column, in the layouts of kernels.h.
template <typename Each>
void for_each_element(const PanelColumn& c, Each each) {
  using kernels::kGroup;
  if (c.type == WeightType::kI8) {
    for (std::int64_t i = 0; i < c.k; ++i) {
      each(i, c.panel[(i / 4 * c.width + c.column) * 4 + i % 4] - 128, c.column_scale);
    }
    return;
  }
  const std::int64_t group_bytes = (2 + kGroup / 2) * static_cast<std::int64_t>(c.width);
  for (std::int64_t begin = 0; begin < c.k; begin += kGroup) {
    const std::uint8_t* group = c.panel + begin / kGroup * group_bytes;
    std::uint16_t half = 0;
    std::memcpy(&half, group + 2 * c.column, 2);
    const float scale = Float16::to_float(half) * c.column_scale;
    const std::uint8_t* bytes = group + 2 * c.width + c.column * 4;
    const std::int64_t count = std::min<std::int64_t>(kGroup, c.k - begin);
    for (std::int64_t i = 0; i < count; ++i) {
      const int byte = bytes[i / 8 * c.width * 4 + i % 4];
      each(begin + i, (i % 8 < 4 ? byte & 15 : byte >> 4) - 8, scale);
    }
  }
}

}  // namespace

void PanelColumn::read(std::int8_t* q, float* scale) const {
  const std::int64_t group = type == WeightType::kI8 ? k : kernels::kGroup;
  for_each_element(*this, [&](std::int64_t i, int value, float s) {
    q[i] = static_cast<std::int8_t>(value);
    if (i % group == 0) scale[i / group] = s;
  });
}

void PanelColumn::widen(float* w) const {
  for_each_element(
      *this, [&](std::int64_t i, int value, float s) { w[i] = static_cast<float>(value) * s; });
}

namespace {

void pack_panel(const kernels::KernelTable& table, const float* block, std::int64_t panel,
                int columns, PackedWeights& w) {
  const int width = table.panel;
  std::byte* out =
      w.panels.as<std::byte>() + static_cast<std::size_t>(panel) * panel_bytes(w.type, w.k, width);
  auto* bytes = reinterpret_cast<std::uint8_t*>(out);
  float* scale = w.column_scale.size() == 0 ? nullptr : w.column_scale.as<float>() + panel * width;
  switch (w.type) {
    case WeightType::kF32:
      return table.pack_f32(block, columns, 1, w.k, columns, 0, 1, reinterpret_cast<float*>(out));
    case WeightType::kBF16:
      return table.pack_bf16(block, w.k, columns, reinterpret_cast<std::uint16_t*>(out));
    case WeightType::kI8: return table.pack_i8(block, w.k, columns, bytes, scale);
    case WeightType::kI4: return table.pack_i4(block, w.k, columns, bytes, scale);
  }
}

// The columns [first, first + columns) of a constant whose columns follow each other have been read
// by panels of one thread; their memory is given back while others are still being packed, so that
// a large table is never there twice.
class ColumnRelease {
 public:
  ColumnRelease(const WeightSource& source, std::int64_t first, const WeightCache::Release& release)
      : release_(release), data_(source.bytes()) {
    const std::int64_t bits = dtype_bits(source.values().dtype);
    if (release_ && source.transposed() && !source.quantized()) {
      column_bytes_ = static_cast<std::size_t>(source.k() * bits / 8);
    }
    begin_ = end_ = static_cast<std::size_t>(first) * column_bytes_;
  }
  ~ColumnRelease() { give_back(); }
  ColumnRelease(const ColumnRelease&) = delete;
  ColumnRelease& operator=(const ColumnRelease&) = delete;

  void add(std::int64_t columns) {
    end_ += static_cast<std::size_t>(columns) * column_bytes_;
    if (end_ - begin_ >= kLeast) give_back();
  }

 private:
  static constexpr std::size_t kLeast = std::size_t{1} << 20;  // bytes that are worth a system call
  void give_back() {
    if (end_ > begin_) release_(data_.subspan(begin_, end_ - begin_));
    begin_ = end_;
  }
  const WeightCache::Release& release_;
  std::span<const std::byte> data_;
  std::size_t column_bytes_ = 0;  // 0: nothing is released here
  std::size_t begin_ = 0, end_ = 0;
};

void pack(const kernels::KernelTable& table, ThreadPool& pool, const WeightSource& source,
          const WeightCache::Release& release, PackedWeights& w) {
  if (w.n == 0) return;
  const std::int64_t panels = (w.n + table.panel - 1) / table.panel;
  const std::size_t bytes = panel_bytes(w.type, w.k, table.panel);
  w.panels = AlignedBuffer(checked_product(bytes, static_cast<std::size_t>(panels)));
  if (w.type == WeightType::kI8 || w.type == WeightType::kI4) {
    w.column_scale = AlignedBuffer(static_cast<std::size_t>(panels * table.panel) * sizeof(float));
  }
  const bool as_stored = w.type != WeightType::kF32 && w.type == source.panel_type();
  const graph::ConstantTensor& values = source.values();
  const std::byte* data = source.bytes().data();
  // Floats that lie as the kernel reads them need no block in between.
  const bool direct = w.type == WeightType::kF32 && values.dtype == DType::kF32 &&
                      reinterpret_cast<std::uintptr_t>(data) % alignof(float) == 0;
  parallel_for(pool, panels, w.k * table.panel, 1, [&](std::int64_t begin, std::int64_t end) {
    ColumnRelease done(source, begin * table.panel, release);
    AlignedBuffer block(
        as_stored || direct
            ? 0
            : checked_product(static_cast<std::size_t>(w.k * table.panel), sizeof(float)));
    for (std::int64_t panel = begin; panel < end; ++panel) {
      const std::int64_t first = panel * table.panel;
      const auto columns = std::min<std::int64_t>(table.panel, w.n - first);
      if (direct) {
        table.pack_f32(reinterpret_cast<const float*>(data), source.transposed() ? 1 : w.n,
                       source.transposed() ? w.k : 1, w.k, w.n, panel, panel + 1,
                       w.panels.as<float>());
      } else if (as_stored) {
        source.fill_panel(first, columns, table.panel,
                          w.panels.as<std::uint8_t>() + static_cast<std::size_t>(panel) * bytes,
                          w.column_scale.as<float>() + first);
      } else {
        source.read_block(first, columns, block.as<float>());
        pack_panel(table, block.as<float>(), panel, static_cast<int>(columns), w);
      }
      done.add(columns);
    }
  });
}

}  // namespace

std::size_t packed_floats(const kernels::KernelTable& table, std::int64_t k, std::int64_t n) {
  const auto panel = static_cast<std::size_t>(table.panel);
  const std::size_t columns = (static_cast<std::size_t>(n) + panel - 1) / panel * panel;
  return checked_product(columns, static_cast<std::size_t>(k));
}

OpCost PackedWeights::cost(std::int64_t rows) const {
  if (rows == 0) return {};
  return {.bytes = static_cast<double>(bytes()),
          .operations =
              2.0 * static_cast<double>(rows) * static_cast<double>(k) * static_cast<double>(n)};
}

OpDescription PackedWeights::describe() const {
  return {.shape = std::to_string(k) + " x " + std::to_string(n),
          .precision = weight_type_name(type)};
}

WeightType WeightCache::type_of(const WeightSource& source, bool looked_up) const {
  const WeightType stored = source.panel_type();
  const WeightType wanted = type_ == WeightType::kI4 && looked_up ? WeightType::kI8 : type_;
  return packed_type(stored == WeightType::kF32 ? wanted : stored, source.k(), source.n());
}

std::shared_ptr<const PackedWeights> WeightCache::get(const WeightSource& source, WeightType type,
                                                      const kernels::KernelTable& table,
                                                      ThreadPool& pool,
                                                      const graph::ConstantTensor& origin,
                                                      std::span<const std::int64_t> arrangement) {
  const Quantization& how = source.quantization();
  const auto data_of = [](const graph::ConstantTensor* tensor) -> const void* {
    return tensor == nullptr ? nullptr : tensor->data.data();
  };
  const std::lock_guard lock(mutex_);
  auto& entry = entries_[{
      data_of(&origin),
      data_of(how.scale),
      data_of(how.zero),
      {source.k(), source.n(), source.first_column(), how.zero_point, how.axis, how.block},
      source.transposed(),
      type,
      &table,
      {arrangement.begin(), arrangement.end()}}];
  if (auto known = entry.lock()) return known;
  auto packed = std::make_shared<PackedWeights>();
  packed->k = source.k();
  packed->n = source.n();
  packed->type = type;
  const bool made = origin.data.data() != source.values().data.data();
  pack(table, pool, source, made ? Release{} : release_, *packed);
  if (release_) {
    release_(made ? origin.data : source.bytes());
    for (const auto* tensor : {how.scale, how.zero}) {
      if (tensor != nullptr) release_(tensor->data);
    }
  }
  entry = packed;
  return packed;
}

std::int64_t WeightCache::bytes() const {
  const std::lock_guard lock(mutex_);
  std::int64_t sum = 0;
  for (const auto& [key, entry] : entries_) {
    if (const auto packed = entry.lock()) sum += static_cast<std::int64_t>(packed->bytes());
  }
  return sum;
}

}  // namespace kvik::ops
