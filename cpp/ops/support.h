// What the operator families share: checks with messages, work splitting, kernels from lambdas.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/checked.h"
#include "base/function_ref.h"
#include "base/short_list.h"
#include "base/tensor.h"
#include "ops/dispatch.h"
#include "ops/op.h"

namespace kvik::ops {

// ---- Kernels from lambdas --------------------------------------------------------------------

// An operator whose whole state is what its lambda captured. Bit i of `strided` says that input i
// may have a row_stride.
template <typename F>
class LambdaKernel final : public OpKernel {
 public:
  LambdaKernel(F f, unsigned strided) : f_(std::move(f)), strided_(strided) {}
  void run(OpContext& context) const override { f_(context); }
  bool accepts_strided(int i) const override { return i < 32 && ((strided_ >> i) & 1u) != 0; }

 private:
  F f_;
  unsigned strided_;
};

template <typename F>
std::unique_ptr<OpKernel> kernel_of(F f, unsigned strided = 0) {
  return std::make_unique<LambdaKernel<F>>(std::move(f), strided);
}

// Lists that kernels make while they run: short, and held without an allocation.
using IntList = ShortList<std::int64_t>;
using AxisList = ShortList<int>;

// ---- Checks ----------------------------------------------------------------------------------

// Throws kInvalidArgument with the message unless the condition holds. The message is built only
// on failure: pass a lambda that returns it.
template <typename Message>
void check(bool condition, Message&& message) {
  if (!condition) fail(ErrorCode::kInvalidArgument, message());
}

// An axis in [-rank, rank) as one in [0, rank). Throws kInvalidArgument.
int normalize_axis(std::int64_t axis, int rank);
// The same for a list, which must not name an axis twice; sorted ascending when `sorted`.
AxisList normalize_axes(std::span<const std::int64_t> axes, int rank);

// Elements and bytes of a result. Throws kOutOfMemory when the size overflows, kInvalidArgument
// when a dimension is negative.
std::int64_t result_elements(const Dims& dims);
std::size_t result_bytes(const Dims& dims, DType dtype);

// Product of two dimensions. Throws kOutOfMemory on overflow.
std::int64_t dim_product(std::int64_t a, std::int64_t b);

// Product for workspaces. Throws kOutOfMemory on overflow.
std::size_t checked_product(std::size_t a, std::size_t b);

// Rounded up to kAlignment. Throws kOutOfMemory on overflow.
std::size_t align_up(std::size_t bytes);

// Parts of one workspace, each kAlignment-aligned: first all are added, then the memory is asked
// for, then at() finds each. Throws kOutOfMemory when the sizes overflow.
class WorkspacePlan {
 public:
  // Where `count` elements of T (count >= 0) will lie, in bytes from the beginning.
  template <typename T>
  std::size_t add(std::int64_t count) {
    return add_bytes(checked_product(static_cast<std::size_t>(count), sizeof(T)));
  }
  std::size_t add_bytes(std::size_t bytes);
  std::size_t bytes() const { return bytes_; }

  void place(void* memory) { memory_ = static_cast<std::byte*>(memory); }
  template <typename T>
  T* at(std::size_t offset) const {
    return reinterpret_cast<T*>(memory_ + offset);
  }

 private:
  std::size_t bytes_ = 0;
  std::byte* memory_ = nullptr;
};

// The integers of an int32 or int64 tensor of rank 0 or 1 ("axes", "shape", ...); `name` for
// messages.
IntList int_list(const Tensor& tensor, std::string_view name);
// The single integer of a tensor with one element.
std::int64_t int_scalar(const Tensor& tensor, std::string_view name);
// The single number of a numeric tensor with one element.
double float_scalar(const Tensor& tensor, std::string_view name);

// Throws kInvalidArgument unless the tensors have the same dtype.
void check_same_dtype(const Tensor& a, const Tensor& b, std::string_view a_name,
                      std::string_view b_name);
void check_dtype(const Tensor& tensor, DType dtype, std::string_view name);

// "input 2" ... for messages about tensors without a better name.
std::string describe(const Tensor& tensor);  // "float32 [2, 3]"

// ---- Iteration -------------------------------------------------------------------------------

// Row-major strides of dims, in elements.
Dims strides_of(const Dims& dims);

// Moves an index of `rank` dimensions to the next element in row-major order and keeps the offset
// into a tensor with `strides` in step. Returns false after the last element.
inline bool advance(const Dims& dims, int rank, Dims& index, const Dims& strides,
                    std::int64_t& offset) {
  for (int axis = rank - 1; axis >= 0; --axis) {
    offset += strides[axis];
    if (++index[axis] < dims[axis]) return true;
    offset -= strides[axis] * dims[axis];
    index[axis] = 0;
  }
  return false;
}

// ---- Work splitting --------------------------------------------------------------------------

// Waking the workers and meeting them at a barrier costs a few microseconds: about as much as one
// thread needs for this many simple element operations. Smaller work stays on the caller.
inline constexpr std::int64_t kMinParallelWork = 16384;

// Calls body(begin, end) on disjoint ranges that cover [0, total), one for each thread, where
// total · cost (in element operations) pays for it. Ranges are multiples of `grain`. The body is a
// reference and not a template parameter: the operators have hundreds of such loops, and one
// indirect call per range costs nothing.
void parallel_for(ThreadPool& pool, std::int64_t total, std::int64_t cost, std::int64_t grain,
                  RangeBody body);

// The same for loops that take long and whose bodies cost nothing to begin: a thread has several
// ranges, of `least` (>= 1) and more but the last, and takes those that others have not come to.
void share_work(ThreadPool& pool, std::int64_t total, std::int64_t cost, std::int64_t least,
                RangeBody body);

inline void parallel_for(OpContext& context, std::int64_t total, std::int64_t cost,
                         RangeBody body) {
  parallel_for(context.pool(), total, cost, 1, body);
}

// Element ranges start at multiples of 64 elements, so that no cache line has two writers.
inline void parallel_elements(OpContext& context, std::int64_t total, RangeBody body) {
  parallel_for(context.pool(), total, 1, 64, body);
}

// Rows of a tensor whose slices along dimension 0 may be row_stride apart: the number of slices,
// the elements in each, and the distance between two. A contiguous tensor is one single slice.
struct Slices {
  std::int64_t count = 1;
  std::int64_t size = 0;
  std::int64_t stride = 0;
};
Slices slices_of(const Tensor& tensor);

}  // namespace kvik::ops
