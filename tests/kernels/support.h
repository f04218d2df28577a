// What the kernel tests share: guarded buffers, comparisons, the tables to test.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cpp/check.h"
#include "kernels/dispatch.h"

namespace kvik::test {

// n floats between two pages that can't be touched. The first starts `offset` floats after one, or
// the last ends `offset` floats before the other, so that with offset 0 an access on that side
// beyond the buffer faults. The floats in between are poison (NaNs of one pattern) and checked by
// intact(). A buffer starts out as poison too.
class Guarded {
 public:
  enum class Side { kStart, kEnd };
  explicit Guarded(std::int64_t n, int offset = 0, Side side = Side::kEnd);
  ~Guarded();
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  float* data() const { return data_; }
  std::int64_t size() const { return n_; }
  float& operator[](std::int64_t i) const { return data_[i]; }
  void fill(Random& random, float low, float high) const;
  void copy_from(const Guarded& other) const;
  bool intact() const;  // nothing outside [data, data + n) was written

 private:
  char* map_;
  std::size_t map_bytes_;
  float* data_;
  std::int64_t n_;
};

// [rows, n] with a row stride; the gaps between rows are poison.
struct Matrix {
  Matrix(std::int64_t rows_, std::int64_t n_, std::int64_t stride_, int offset = 0,
         Guarded::Side side = Guarded::Side::kEnd)
      : rows(rows_),
        n(n_),
        stride(stride_),
        buffer(rows_ ? (rows_ - 1) * stride_ + n_ : 0, offset, side) {}
  float* row(std::int64_t r) const { return buffer.data() + r * stride; }
  float* data() const { return buffer.data(); }
  float& at(std::int64_t r, std::int64_t i) const { return row(r)[i]; }
  void fill(Random& random, float low, float high) const;
  bool intact() const;  // neither the gaps nor the outside were written
  std::vector<float> elements() const;

  std::int64_t rows, n, stride;
  Guarded buffer;
};

bool is_poison(float value);
bool same_bits(float a, float b);
bool same_bits(const std::vector<float>& a, const std::vector<float>& b);

// Distance from a float's magnitude to the next; of the smallest subnormal for 0.
double ulp(double value);

// Whether got is within tolerance of want. NaN equals NaN, an infinity only itself.
bool close(float got, double want, double tolerance);

// Checks every element, then that the same comparison notices a change of `perturbation` (relative
// to the largest expected magnitude) in one element, so that the tolerances can't be vacuous.
// Prints ISA, case, place, values and tolerance of the worst element.
void expect_close(const std::string& what, const std::vector<float>& got,
                  const std::vector<double>& want, const std::vector<double>& tolerance,
                  double perturbation);

// Calls body for every table that this CPU has, and for those that can be emulated on it; or for
// all of them but the reference.
void for_each_isa(const std::function<void(const kernels::KernelTable&)>& body);
void for_each_vector_isa(const std::function<void(const kernels::KernelTable&)>& body);

// Lengths 0 .. 2 vectors + 1 of the widest ISA, and some large ones.
std::vector<std::int64_t> lengths();

constexpr double kEps = 0x1p-24;  // largest relative error of one rounding to float

}  // namespace kvik::test
