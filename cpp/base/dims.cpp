#include "base/dims.h"

#include <algorithm>

#include "kvik/error.h"

namespace kvik {

namespace {
[[noreturn]] void throw_rank(std::size_t rank) {
  throw Error(ErrorCode::kUnsupported, "a tensor of rank " + std::to_string(rank) +
                                           "; Kvik supports ranks up to " +
                                           std::to_string(kMaxRank));
}
}  // namespace

Dims::Dims(std::initializer_list<std::int64_t> values)
    : Dims(std::span<const std::int64_t>(values.begin(), values.size())) {}

Dims::Dims(std::span<const std::int64_t> values) {
  if (values.size() > static_cast<std::size_t>(kMaxRank)) throw_rank(values.size());
  std::copy(values.begin(), values.end(), d.begin());
  rank = static_cast<int>(values.size());
}

void Dims::push_back(std::int64_t value) {
  if (rank == kMaxRank) throw_rank(static_cast<std::size_t>(rank) + 1);
  d[static_cast<std::size_t>(rank++)] = value;
}

std::int64_t Dims::elements() const {
  return elements(0, rank);
}

std::int64_t Dims::elements(int first, int last) const {
  std::int64_t product = 1;
  for (int i = first; i < last; ++i) product *= (*this)[i];
  return product;
}

bool Dims::operator==(const Dims& other) const {
  return rank == other.rank && std::equal(begin(), end(), other.begin());
}

std::string Dims::str() const {
  std::string out = "[";
  for (int i = 0; i < rank; ++i) out += (i ? ", " : "") + std::to_string((*this)[i]);
  return out + "]";
}

}  // namespace kvik
