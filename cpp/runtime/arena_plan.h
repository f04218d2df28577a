// Places buffers with known lifetimes in one arena.
#pragma once

#include <cstdint>
#include <span>

namespace kvik::runtime {

// A buffer that is written at step `first` and last read at step `last` (>= first).
struct ArenaBuffer {
  std::int64_t bytes = 0;
  int first = 0;
  int last = 0;
  std::int64_t offset = -1;  // result; a multiple of kAlignment
};

// Gives every buffer its offset, so that buffers whose lifetimes share a step do not overlap.
// Best fit in order of first use; O(n log n). Returns the size of the arena in bytes.
// Throws kvik::Error(kOutOfMemory) when the size overflows.
std::int64_t plan_arena(std::span<ArenaBuffer> buffers);

}  // namespace kvik::runtime
