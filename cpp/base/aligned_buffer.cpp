#include "base/aligned_buffer.h"

#include <new>
#include <string>

#include "kvik/error.h"

namespace kvik {

AlignedBuffer::AlignedBuffer(std::size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  data_ = ::operator new(bytes, std::align_val_t{kAlignment}, std::nothrow);
  if (data_ == nullptr) {
    throw Error(ErrorCode::kOutOfMemory, "cannot allocate " + std::to_string(bytes) + " bytes");
  }
}

AlignedBuffer::~AlignedBuffer() {
  ::operator delete(data_, std::align_val_t{kAlignment});
}

}  // namespace kvik
