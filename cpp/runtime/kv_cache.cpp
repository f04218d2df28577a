#include "runtime/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>

#include "base/checked.h"
#include "kernels/kernels.h"
#include "kvik/error.h"

namespace kvik::runtime {

namespace {

constexpr std::int64_t kBlock = kernels::kKvBlock;
constexpr std::int64_t kMaxPageBytes = std::int64_t{1} << 30;

std::int64_t pages_for(std::int64_t length) {
  return (length + kBlock - 1) / kBlock;
}

// Copies the first `positions` positions of every block: of the scales, of each dimension of the
// keys, and of the values.
void copy_positions(const KvLayout& layout, const KvPage& from, const KvPage& to,
                    std::int64_t positions) {
  const auto copy = [&](std::int64_t offset, std::int64_t bytes) {
    std::memcpy(to.memory.as<std::byte>() + offset, from.memory.as<std::byte>() + offset,
                static_cast<std::size_t>(bytes));
  };
  for (const KvLayout::Table& table : layout.tables()) {
    const std::int64_t element = kernels::cache_element_bytes(table.type);
    const std::int64_t scales = kernels::cache_scale_bytes(table.type);
    for (const std::int64_t block : {table.k_offset, table.v_offset}) {
      if (scales != 0) copy(block, positions * scales / kBlock);
    }
    for (std::int64_t d = 0; d < table.head_dim; ++d) {
      copy(table.k_offset + scales + d * kBlock * element, positions * element);
    }
    copy(table.v_offset + scales, positions * table.value_dim * element);
  }
}

}  // namespace

KvLayout::KvLayout(std::span<const KvLayerShape> layers, CacheType type, bool one_at_a_time)
    : type_(type) {
  for (const KvLayerShape& layer : layers) {
    const auto same = std::find(layers.begin(), layers.end(), layer) - layers.begin();
    if (one_at_a_time && same < static_cast<std::ptrdiff_t>(layer_tables_.size())) {
      layer_tables_.push_back(layer_tables_[static_cast<std::size_t>(same)]);
      continue;
    }
    layer_tables_.push_back(static_cast<std::int64_t>(tables_.size()));
    for (int head = 0; head < layer.kv_heads; ++head) {
      Table table{.head_dim = layer.head_dim,
                  .value_dim = layer.value_dim,
                  .type = layer.state ? CacheType::kF32 : type};
      // Every block is a multiple of a cache line long.
      table.k_offset = page_bytes_;
      table.v_offset = table.k_offset + kernels::cache_block_bytes(table.type, layer.head_dim);
      page_bytes_ = table.v_offset + kernels::cache_block_bytes(table.type, layer.value_dim);
      if (page_bytes_ > kMaxPageBytes) {
        throw Error(ErrorCode::kUnsupported,
                    "the keys, values and states of one token need more than " +
                        std::to_string(kMaxPageBytes / kBlock) +
                        " bytes; the model's heads or recurrent layers are too many or too wide");
      }
      tables_.push_back(table);
    }
  }
}

KvPage* KvPool::take() {
  std::unique_ptr<KvPage> page;
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      page = std::move(free_.back());
      free_.pop_back();
    }
  }
  const auto bytes = static_cast<std::size_t>(layout_.page_bytes());
  if (!page) {
    page = std::make_unique<KvPage>();
    page->memory = AlignedBuffer(bytes);
    if (bytes > 0) std::memset(page->memory.data(), 0, bytes);
  }
  page->references.store(1, std::memory_order_relaxed);
  return page.release();
}

void KvPool::release(KvPage* page) noexcept {
  if (page->references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  std::unique_ptr<KvPage> owned(page);
  const std::lock_guard lock(mutex_);
  try {
    free_.push_back(std::move(owned));
  } catch (const std::bad_alloc&) {
    // No room to remember it: the page is freed instead, by `owned`.
  }
}

KvCache::KvCache(const KvCache& other)
    : pool_(other.pool_),
      length_(other.length_),
      capacity_(other.capacity_),
      tables_(other.tables_) {
  const std::int64_t shared = pages_for(length_);
  pages_.reserve(other.pages_.capacity());
  pages_.assign(other.pages_.begin(), other.pages_.begin() + shared);
  for (KvPage* page : pages_) page->references.fetch_add(1, std::memory_order_relaxed);
}

KvCache::~KvCache() {
  for (KvPage* page : pages_) pool_->release(page);
}

std::int64_t KvCache::bytes() const {
  return pages() * pool_->layout().page_bytes();
}

bool KvCache::shares_last_page() const {
  return length_ % kBlock != 0 && pages() == pages_for(length_) &&
         pages_.back()->references.load(std::memory_order_acquire) > 1;
}

void KvCache::reserve(std::int64_t new_length) {
  if (new_length <= length_) return;
  if (shares_last_page()) copy_last_page();
  const std::int64_t wanted = pages_for(new_length);
  try {
    while (pages() < wanted) push_page(pool_->take());
  } catch (...) {
    truncate(length_);
    throw;
  }
}

void KvCache::push_page(KvPage* page) {
  try {
    if (pages() == capacity_) {
      // Growing the tables moves every one of them; the pages themselves stay.
      const std::int64_t capacity = std::max<std::int64_t>(16, 2 * capacity_);
      std::vector<void*> tables(pool_->layout().tables().size() * 2 *
                                static_cast<std::size_t>(capacity));
      pages_.reserve(static_cast<std::size_t>(capacity));
      tables_.swap(tables);
      capacity_ = capacity;
      for (std::int64_t i = 0; i < pages(); ++i) {
        point_tables_at(i, *pages_[static_cast<std::size_t>(i)]);
      }
    }
    pages_.push_back(page);
  } catch (...) {
    pool_->release(page);
    throw;
  }
  point_tables_at(pages() - 1, *page);
}

void KvCache::point_tables_at(std::int64_t index, const KvPage& page) {
  auto* memory = page.memory.as<std::byte>();
  void** slot = tables_.data() + index;
  for (const KvLayout::Table& table : pool_->layout().tables()) {
    slot[0] = memory + table.k_offset;
    slot[capacity_] = memory + table.v_offset;
    slot += 2 * capacity_;
  }
}

void KvCache::copy_last_page() {
  KvPage* copy = pool_->take();
  copy_positions(pool_->layout(), *pages_.back(), *copy, length_ % kBlock);
  pool_->release(pages_.back());
  pages_.back() = copy;
  point_tables_at(pages() - 1, *copy);
}

void KvCache::truncate(std::int64_t length) {
  const std::int64_t kept = pages_for(length);
  while (pages() > kept) {
    pool_->release(pages_.back());
    pages_.pop_back();
  }
  length_ = length;
}

ops::KvTables KvCache::tables() const {
  return {.tables = tables_.data(), .stride = capacity_, .cache = pool_->layout().type()};
}

ops::RowRun KvCache::run(std::int64_t first_row, std::int64_t rows,
                         std::int64_t first_position) const {
  return {.first_row = first_row, .rows = rows, .first_position = first_position, .keys = tables()};
}

}  // namespace kvik::runtime
