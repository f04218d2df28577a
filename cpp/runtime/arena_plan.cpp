#include "runtime/arena_plan.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/checked.h"
#include "kvik/error.h"

namespace kvik::runtime {

namespace {

// The unused parts of [0, end), by offset and by size.
class FreeList {
 public:
  std::int64_t end() const { return end_; }

  std::int64_t take(std::int64_t bytes) {
    const auto best = by_size_.lower_bound({bytes, 0});
    if (best != by_size_.end()) {
      const auto [size, offset] = *best;
      erase(offset, size);
      if (size > bytes) insert(offset + bytes, size - bytes);
      return offset;
    }
    // Nothing fits: grow, using a free part at the very end.
    std::int64_t offset = end_;
    if (!by_offset_.empty()) {
      const auto [last_offset, last_size] = *by_offset_.rbegin();
      if (last_offset + last_size == end_) {
        offset = last_offset;
        erase(last_offset, last_size);
      }
    }
    if (!checked_add(offset, bytes, &end_)) {
      throw Error(ErrorCode::kOutOfMemory, "the activations of the model exceed 2^63 bytes");
    }
    return offset;
  }

  void give(std::int64_t offset, std::int64_t bytes) {
    auto next = by_offset_.lower_bound(offset);
    if (next != by_offset_.end() && next->first == offset + bytes) {
      bytes += next->second;
      erase(next->first, next->second);
    }
    next = by_offset_.lower_bound(offset);
    if (next != by_offset_.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == offset) {
        offset = before->first;
        bytes += before->second;
        erase(before->first, before->second);
      }
    }
    insert(offset, bytes);
  }

 private:
  void insert(std::int64_t offset, std::int64_t bytes) {
    by_offset_.emplace(offset, bytes);
    by_size_.emplace(bytes, offset);
  }
  void erase(std::int64_t offset, std::int64_t bytes) {
    by_offset_.erase(offset);
    by_size_.erase({bytes, offset});
  }

  std::int64_t end_ = 0;
  std::map<std::int64_t, std::int64_t> by_offset_;           // offset -> bytes
  std::set<std::pair<std::int64_t, std::int64_t>> by_size_;  // (bytes, offset)
};

std::int64_t rounded(std::int64_t bytes) {
  constexpr std::int64_t unit = kAlignment;
  std::int64_t sum = 0;
  if (!checked_add(std::max<std::int64_t>(bytes, 1), unit - 1, &sum)) {
    throw Error(ErrorCode::kOutOfMemory, "an activation of the model exceeds 2^63 bytes");
  }
  return sum / unit * unit;
}

}  // namespace

std::int64_t plan_arena(std::span<ArenaBuffer> buffers) {
  std::vector<std::size_t> by_first(buffers.size());
  std::iota(by_first.begin(), by_first.end(), std::size_t{0});
  std::vector<std::size_t> by_last = by_first;
  std::stable_sort(by_first.begin(), by_first.end(), [&](std::size_t a, std::size_t b) {
    return buffers[a].first < buffers[b].first;
  });
  std::stable_sort(by_last.begin(), by_last.end(),
                   [&](std::size_t a, std::size_t b) { return buffers[a].last < buffers[b].last; });
  FreeList free;
  std::size_t ended = 0;
  for (const std::size_t i : by_first) {
    // A buffer that is last read at the step before this one begins has given its place back; it
    // began no later than it ended, so it has one.
    while (ended < by_last.size() && buffers[by_last[ended]].last < buffers[i].first) {
      const ArenaBuffer& done = buffers[by_last[ended++]];
      free.give(done.offset, rounded(done.bytes));
    }
    buffers[i].offset = free.take(rounded(buffers[i].bytes));
  }
  return free.end();
}

}  // namespace kvik::runtime
