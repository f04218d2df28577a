#include "kernels/support.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace kvik::kernels {
extern const KernelTable kEmulatedAmxTable, kEmulatedAvx512Bf16Table, kEmulatedAvx2VnniTable;
}

namespace kvik::test {
namespace {

constexpr std::uint32_t kPoison = 0x7fc5a5a5;  // a quiet NaN: shows up in any result that reads it

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Says once which tables there are. A machine may lack any of them, and tests of it would then pass
// without having run: who knows what it has names them in KVIK_TEST_TABLES, the best first.
void expect_tables() {
  static const std::string have = [] {
    std::string names;
    for (const kernels::KernelTable* table : kernels::available_tables()) {
      names += (names.empty() ? "" : " ") + std::string(table->name);
    }
    std::printf("tables: %s\n", names.c_str());
    return names;
  }();
  const char* want = std::getenv("KVIK_TEST_TABLES");
  CHECK(want == nullptr || have == want) << ": found " << have << "; KVIK_TEST_TABLES is " << want;
}

}  // namespace

bool is_poison(float value) {
  return bits_of(value) == kPoison;
}
bool same_bits(float a, float b) {
  return bits_of(a) == bits_of(b);
}
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

Guarded::Guarded(std::int64_t n, int offset, Side side) : n_(n) {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t bytes = static_cast<std::size_t>(n + offset + 16) * sizeof(float);
  const std::size_t inner = (bytes + page - 1) / page * page;
  map_bytes_ = inner + 2 * page;
  void* map = mmap(nullptr, map_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) throw std::runtime_error("mmap failed");
  map_ = static_cast<char*>(map);
  if (mprotect(map_ + page, inner, PROT_READ | PROT_WRITE) != 0) {
    throw std::runtime_error("mprotect failed");
  }
  float* begin = reinterpret_cast<float*>(map_ + page);
  float* end = reinterpret_cast<float*>(map_ + page + inner);
  data_ = side == Side::kStart ? begin + offset : end - offset - n;
  for (float* p = begin; p != end; ++p) std::memcpy(p, &kPoison, sizeof kPoison);
}

Guarded::~Guarded() {
  munmap(map_, map_bytes_);
}

void Guarded::fill(Random& random, float low, float high) const {
  for (std::int64_t i = 0; i < n_; ++i) data_[i] = random.uniform(low, high);
}

void Guarded::copy_from(const Guarded& other) const {
  std::copy(other.data_, other.data_ + n_, data_);
}

bool Guarded::intact() const {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const float* begin = reinterpret_cast<const float*>(map_ + page);
  const float* end = reinterpret_cast<const float*>(map_ + map_bytes_ - page);
  return std::all_of(begin, static_cast<const float*>(data_), is_poison) &&
         std::all_of(static_cast<const float*>(data_ + n_), end, is_poison);
}

void Matrix::fill(Random& random, float low, float high) const {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < n; ++i) at(r, i) = random.uniform(low, high);
  }
}

bool Matrix::intact() const {
  for (std::int64_t r = 0; r + 1 < rows; ++r) {
    if (!std::all_of(row(r) + n, row(r + 1), is_poison)) return false;
  }
  return buffer.intact();
}

std::vector<float> Matrix::elements() const {
  std::vector<float> out;
  for (std::int64_t r = 0; r < rows; ++r) out.insert(out.end(), row(r), row(r) + n);
  return out;
}

double ulp(double value) {
  const float magnitude = static_cast<float>(std::fabs(value));
  if (!std::isfinite(magnitude)) return std::ldexp(1.0, 104);
  return static_cast<double>(std::nextafter(magnitude, std::numeric_limits<float>::infinity())) -
         magnitude;
}

bool close(float got, double want, double tolerance) {
  if (std::isnan(want)) return std::isnan(got);
  if (std::isinf(want)) return static_cast<double>(got) == want;
  return std::fabs(got - want) <= tolerance;  // false when got is NaN
}

void expect_close(const std::string& what, const std::vector<float>& got,
                  const std::vector<double>& want, const std::vector<double>& tolerance,
                  double perturbation) {
  CHECK_EQ(got.size(), want.size()) << what;
  std::size_t worst = 0, wrong = 0, largest = 0;
  double worst_ratio = -1.0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (std::isfinite(want[i]) && !(std::fabs(want[largest]) >= std::fabs(want[i]))) largest = i;
    if (close(got[i], want[i], tolerance[i])) continue;
    ++wrong;
    const double ratio = std::fabs(got[i] - want[i]) / tolerance[i];
    if (!(ratio <= worst_ratio)) worst = i, worst_ratio = ratio;
  }
  CHECK(wrong == 0) << what << ": " << wrong << " of " << want.size() << " elements, worst at "
                    << worst << ": got " << show(got[worst]) << ", want " << show(want[worst])
                    << " within " << tolerance[worst];
  if (want.empty() || !std::isfinite(want[largest]) || want[largest] == 0.0) return;
  const float perturbed =
      static_cast<float>(got[largest] + perturbation * std::fabs(want[largest]));
  CHECK(!close(perturbed, want[largest], tolerance[largest]))
      << what << ": the tolerance " << tolerance[largest] << " of " << want[largest]
      << " would not notice a change of " << perturbation << " of it";
}

void for_each_isa(const std::function<void(const kernels::KernelTable&)>& body) {
  expect_tables();
  for (const kernels::KernelTable* table : kernels::available_tables()) body(*table);
#if defined(KVIK_KERNELS_X86)
  // Instruction sets that few CPUs have, over the parts of others.
  if (kernels::table_for(kernels::Isa::kAvx512Vnni) == nullptr) return;
  body(kernels::kEmulatedAmxTable);
  body(kernels::kEmulatedAvx512Bf16Table);
  body(kernels::kEmulatedAvx2VnniTable);
#endif
}

void for_each_vector_isa(const std::function<void(const kernels::KernelTable&)>& body) {
  for_each_isa([&](const kernels::KernelTable& table) {
    if (table.isa != kernels::Isa::kReference) body(table);
  });
}

std::vector<std::int64_t> lengths() {
  std::vector<std::int64_t> all;
  for (std::int64_t n = 0; n <= 33; ++n) all.push_back(n);
  for (std::int64_t n : {47, 63, 64, 65, 127, 129, 200, 768, 1023}) all.push_back(n);
  return all;
}

}  // namespace kvik::test
