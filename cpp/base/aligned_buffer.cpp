#include "base/aligned_buffer.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <new>
#include <string>

#include "kvik/error.h"

namespace kvik {
namespace {

// Large buffers are aligned to huge pages and ask for them: weights are read from end to end every
// step, and with pages of 4 KiB the hardware stops fetching ahead, and looks up an address, at
// every one. A hint: a system without them gives ordinary pages.
constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::align_val_t alignment_of(std::size_t bytes) {
  return std::align_val_t{bytes >= 2 * kHugePage ? kHugePage : kAlignment};
}

void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // Whole ones alone: a part of one would take more memory than was asked for.
  madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
}

}  // namespace

AlignedBuffer::AlignedBuffer(std::size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  data_ = ::operator new(bytes, alignment_of(bytes), std::nothrow);
  if (data_ == nullptr) {
    throw Error(ErrorCode::kOutOfMemory, "cannot allocate " + std::to_string(bytes) + " bytes");
  }
  if (bytes >= 2 * kHugePage) ask_for_huge_pages(data_, bytes);
}

AlignedBuffer::~AlignedBuffer() {
  ::operator delete(data_, alignment_of(size_));
}

}  // namespace kvik
