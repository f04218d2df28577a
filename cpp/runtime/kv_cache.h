// Keys and values of token sequences, and states of recurrent layers, in pages that sequences can
// share.
//
// A page holds kKvBlock positions of every attention layer and key/value head of one model: for
// each its K block [head_dim, kKvBlock] and its V block [kKvBlock, value_dim], see kernels.h. Of a
// recurrent layer it holds the states after each position, [kKvBlock, width] float32: whatever the
// cache's precision, since a rounded state would be rounded again at every step, and results would
// depend on where a text was cut. All layers grow together, so one reference count a page is
// enough, and a fork shares every page.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "ops/row_batch.h"

namespace kvik::runtime {

struct KvLayerShape {
  int kv_heads = 0;
  int head_dim = 0;
  int value_dim = 0;
  bool state = false;  // of a recurrent layer: value_dim floats a position; one head, head_dim 0
  bool operator==(const KvLayerShape&) const = default;
};

// Where each block lies within a page.
class KvLayout {
 public:
  // `one_at_a_time`: no layer's keys and values are read once another's were stored; layers of the
  // same shape have one place then. Throws kvik::Error(kUnsupported) when a page would be absurdly
  // large.
  explicit KvLayout(std::span<const KvLayerShape> layers, CacheType type = CacheType::kF32,
                    bool one_at_a_time = false);

  struct Table {                // one (layer, kv head)
    std::int64_t k_offset = 0;  // in bytes
    std::int64_t v_offset = 0;
    int head_dim = 0;
    int value_dim = 0;
    CacheType type = CacheType::kF32;
  };
  std::span<const Table> tables() const { return tables_; }
  std::span<const std::int64_t> layer_tables() const { return layer_tables_; }
  CacheType type() const { return type_; }
  std::int64_t page_bytes() const { return page_bytes_; }  // 0: a model without either

 private:
  std::vector<Table> tables_;
  std::vector<std::int64_t> layer_tables_;
  CacheType type_;
  std::int64_t page_bytes_ = 0;
};

struct KvPage {
  std::atomic<int> references{1};
  AlignedBuffer memory;  // [page_bytes]
};

// Hands out pages and takes them back for reuse. A new page is zeros, a used one holds what it
// held: of positions that were not written nothing reaches a result (see kKvBlock). Safe to use
// from several threads; locked only when a page changes hands, once in kKvBlock tokens.
class KvPool {
 public:
  explicit KvPool(KvLayout layout) : layout_(std::move(layout)) {}
  const KvLayout& layout() const { return layout_; }

  KvPage* take();                       // throws kvik::Error(kOutOfMemory)
  void release(KvPage* page) noexcept;  // drops one reference

 private:
  KvLayout layout_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<KvPage>> free_;
};

// The cache of one sequence. Used by one thread at a time; copies share pages.
class KvCache {
 public:
  explicit KvCache(std::shared_ptr<KvPool> pool) : pool_(std::move(pool)) {}
  KvCache(const KvCache& other);  // a fork
  KvCache& operator=(const KvCache&) = delete;
  ~KvCache();

  std::int64_t length() const { return length_; }
  std::int64_t pages() const { return static_cast<std::int64_t>(pages_.size()); }
  std::int64_t bytes() const;  // of the pages it refers to, shared ones included

  // Whether to write the next position is to copy a page first, which another sequence shares.
  bool shares_last_page() const;

  // Makes the positions [length(), new_length) writable: takes pages, and copies the last page if
  // another sequence shares it. Allocates nothing when neither is needed. On an error the cache
  // is unchanged as far as anyone can see.
  void reserve(std::int64_t new_length);
  // The reserved positions were written; they count now.
  void commit(std::int64_t new_length) { length_ = new_length; }
  // Forgets the positions from `length` on, also reserved ones that were never committed.
  void truncate(std::int64_t length);

  // A run of rows at positions [first_position, first_position + rows), all reserved.
  ops::RowRun run(std::int64_t first_row, std::int64_t rows, std::int64_t first_position) const;
  ops::KvTables tables() const;  // until the next reserve()

 private:
  void push_page(KvPage* page);
  void point_tables_at(std::int64_t index, const KvPage& page);
  void copy_last_page();

  std::shared_ptr<KvPool> pool_;
  std::int64_t length_ = 0;
  std::vector<KvPage*> pages_;
  std::int64_t capacity_ = 0;  // pages that the tables have room for
  std::vector<void*> tables_;  // [tables, 2 (K, V), capacity]
};

}  // namespace kvik::runtime
