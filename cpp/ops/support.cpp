#include "ops/support.h"

namespace kvik::ops {

void fail_dtype(DType dtype) {
  fail(ErrorCode::kUnsupported,
       std::string("elements of type ") + dtype_name(dtype) + " are not supported here");
}

int normalize_axis(std::int64_t axis, int rank) {
  if (axis < -rank || axis >= rank) {
    fail(ErrorCode::kInvalidArgument, "axis " + std::to_string(axis) +
                                          " is out of range for a tensor of rank " +
                                          std::to_string(rank));
  }
  return static_cast<int>(axis < 0 ? axis + rank : axis);
}

AxisList normalize_axes(std::span<const std::int64_t> axes, int rank) {
  AxisList out;
  for (std::int64_t axis : axes) {
    const int normal = normalize_axis(axis, rank);
    if (std::find(out.begin(), out.end(), normal) != out.end()) {
      fail(ErrorCode::kInvalidArgument, "axis " + std::to_string(axis) + " is named twice");
    }
    out.push_back(normal);
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::int64_t result_elements(const Dims& dims) {
  for (std::int64_t dim : dims) {
    if (dim < 0) {
      fail(ErrorCode::kInvalidArgument,
           "a result of shape " + dims.str() + " has a negative dimension");
    }
  }
  const auto elements = checked_elements(dims.span());
  if (!elements) {
    fail(ErrorCode::kOutOfMemory, "a result of shape " + dims.str() + " has too many elements");
  }
  return *elements;
}

std::size_t result_bytes(const Dims& dims, DType dtype) {
  const auto bytes = checked_bytes(result_elements(dims), dtype);
  if (!bytes) {
    fail(ErrorCode::kOutOfMemory, "a result of shape " + dims.str() + " has too many elements");
  }
  return static_cast<std::size_t>(*bytes);
}

std::int64_t dim_product(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  if (!checked_mul(a, b, &product)) {
    fail(ErrorCode::kOutOfMemory,
         "a dimension of " + std::to_string(a) + " times " + std::to_string(b) + " is too large");
  }
  return product;
}

std::size_t checked_product(std::size_t a, std::size_t b) {
  std::size_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) {
    fail(ErrorCode::kOutOfMemory, "a workspace of " + std::to_string(a) + " times " +
                                      std::to_string(b) + " bytes is too large");
  }
  return product;
}

std::size_t align_up(std::size_t bytes) {
  std::size_t rounded = 0;
  if (__builtin_add_overflow(bytes, kAlignment - 1, &rounded)) {
    fail(ErrorCode::kOutOfMemory,
         "a workspace of " + std::to_string(bytes) + " bytes is too large");
  }
  return rounded / kAlignment * kAlignment;
}

std::size_t WorkspacePlan::add_bytes(std::size_t bytes) {
  const std::size_t offset = bytes_;
  if (__builtin_add_overflow(bytes_, align_up(bytes), &bytes_)) {
    fail(ErrorCode::kOutOfMemory,
         "a workspace of " + std::to_string(bytes) + " bytes is too large");
  }
  return offset;
}

IntList int_list(const Tensor& tensor, std::string_view name) {
  if (tensor.dims.rank > 1) {
    fail(ErrorCode::kInvalidArgument,
         std::string(name) + " has shape " + tensor.dims.str() + "; expected a list");
  }
  const std::int64_t n = tensor.elements();
  IntList out(static_cast<std::size_t>(n));
  if (tensor.dtype == DType::kI64) {
    std::copy_n(tensor.as<std::int64_t>(), n, out.begin());
  } else if (tensor.dtype == DType::kI32) {
    std::copy_n(tensor.as<std::int32_t>(), n, out.begin());
  } else {
    fail(ErrorCode::kInvalidArgument,
         std::string(name) + " has type " + dtype_name(tensor.dtype) + "; expected int64 or int32");
  }
  return out;
}

std::int64_t int_scalar(const Tensor& tensor, std::string_view name) {
  if (tensor.elements() != 1) {
    fail(ErrorCode::kInvalidArgument,
         std::string(name) + " has shape " + tensor.dims.str() + "; expected one element");
  }
  return visit_integer(tensor.dtype,
                       [&]<typename T>() { return static_cast<std::int64_t>(*tensor.as<T>()); });
}

double float_scalar(const Tensor& tensor, std::string_view name) {
  if (tensor.elements() != 1) {
    fail(ErrorCode::kInvalidArgument,
         std::string(name) + " has shape " + tensor.dims.str() + "; expected one element");
  }
  return visit_numeric(tensor.dtype,
                       [&]<typename T>() { return static_cast<double>(widen(*tensor.as<T>())); });
}

void check_same_dtype(const Tensor& a, const Tensor& b, std::string_view a_name,
                      std::string_view b_name) {
  if (a.dtype == b.dtype) return;
  fail(ErrorCode::kInvalidArgument, std::string(a_name) + " has type " + dtype_name(a.dtype) +
                                        " but " + std::string(b_name) + " has type " +
                                        dtype_name(b.dtype));
}

void check_dtype(const Tensor& tensor, DType dtype, std::string_view name) {
  if (tensor.dtype == dtype) return;
  fail(ErrorCode::kInvalidArgument, std::string(name) + " has type " + dtype_name(tensor.dtype) +
                                        "; expected " + dtype_name(dtype));
}

std::string describe(const Tensor& tensor) {
  return std::string(dtype_name(tensor.dtype)) + " " + tensor.dims.str();
}

Dims strides_of(const Dims& dims) {
  Dims strides = dims;
  std::int64_t stride = 1;
  for (int axis = dims.rank - 1; axis >= 0; --axis) {
    strides[axis] = stride;
    stride *= dims[axis];
  }
  return strides;
}

namespace {

// Whether a loop is too short to be worth the other threads.
bool stays_here(const ThreadPool& pool, std::int64_t total, std::int64_t cost, std::int64_t grain) {
  return pool.threads() == 1 || total <= grain ||
         total < kMinParallelWork / std::max<std::int64_t>(cost, 1);
}

// Pieces of a thread's part of a shared loop, where there is work for so many.
constexpr double kMostPieces = 8;

}  // namespace

void parallel_for(ThreadPool& pool, std::int64_t total, std::int64_t cost, std::int64_t grain,
                  RangeBody body) {
  if (total <= 0) return;
  if (stays_here(pool, total, cost, grain)) {
    body(std::int64_t{0}, total);
    return;
  }
  pool.run([&](int worker, int workers) {
    const Range range = split_range(total, worker, workers, grain);
    if (range.begin < range.end) body(range.begin, range.end);
  });
}

void share_work(ThreadPool& pool, std::int64_t total, std::int64_t cost, std::int64_t least,
                RangeBody body) {
  if (total <= 0) return;
  if (stays_here(pool, total, cost, 1)) {
    body(std::int64_t{0}, total);
    return;
  }
  // Pieces that take long beside the handing out of one, and not long beside a thread's part.
  const double work = static_cast<double>(total) * static_cast<double>(cost);
  const double threads = pool.threads();
  const auto pieces = static_cast<std::int64_t>(
      std::clamp(work / kMinParallelWork, threads, kMostPieces * threads));
  pool.share(total, std::max((total + pieces - 1) / pieces, least),
             [&](int, std::int64_t begin, std::int64_t end) { body(begin, end); });
}

Slices slices_of(const Tensor& tensor) {
  if (tensor.contiguous() || tensor.dims.rank == 0) return {1, tensor.elements(), 0};
  return {tensor.dims[0], tensor.dims.elements(1, tensor.dims.rank), tensor.row_stride};
}

}  // namespace kvik::ops
