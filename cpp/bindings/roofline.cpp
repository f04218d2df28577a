#include "bindings/roofline.h"

#if defined(__x86_64__)
#include "base/x86_intrinsics.h"
#include "kernels/tile_amx.h"
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "kernels/dispatch.h"
#include "kvik/error.h"

namespace kvik::bindings {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void check_arguments(int threads, double seconds) {
  if (threads < 1) throw Error(ErrorCode::kInvalidArgument, "threads must be at least 1");
  if (!(seconds > 0 && seconds <= 60)) {
    throw Error(ErrorCode::kInvalidArgument, "seconds must be more than 0 and at most 60");
  }
}

// Results of the loops go here, so that the compiler can't drop them.
std::atomic<std::uint64_t> sink{0};

// ---- Reading ------------------------------------------------------------------------------------

// 64 bytes: one cache line. Element-wise operations compile to what the target has.
typedef std::uint64_t Line __attribute__((vector_size(64)));
constexpr std::size_t kPrefetchLines = 64;  // 4 KiB ahead: beyond what the hardware prefetches
// A timed round reads at least this much, so that the clock and the meeting of the threads vanish.
constexpr std::size_t kLeastRound = std::size_t{32} << 20;

// Lines [begin, end) xor-ed together; four chains, since the latency of one would bound the rate.
// Inlined into a function per instruction set, whose register width it takes.
inline __attribute__((always_inline)) std::uint64_t read_body(const Line* lines, std::size_t begin,
                                                              std::size_t end) {
  Line a{}, b{}, c{}, d{};
  std::size_t i = begin;
  for (; i + 4 <= end; i += 4) {
    for (std::size_t j = 0; j < 4; ++j) __builtin_prefetch(lines + i + j + kPrefetchLines);
    a ^= lines[i];
    b ^= lines[i + 1];
    c ^= lines[i + 2];
    d ^= lines[i + 3];
  }
  for (; i < end; ++i) a ^= lines[i];
  a ^= b ^ c ^ d;
  std::uint64_t folded = 0;
  for (int j = 0; j < 8; ++j) folded ^= a[j];
  return folded;
}

using ReadLines = std::uint64_t (*)(const Line*, std::size_t, std::size_t);

std::uint64_t read_baseline(const Line* lines, std::size_t begin, std::size_t end) {
  return read_body(lines, begin, end);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) std::uint64_t read_avx2(const Line* lines, std::size_t begin,
                                                        std::size_t end) {
  return read_body(lines, begin, end);
}
__attribute__((target("avx512f"))) std::uint64_t read_avx512(const Line* lines, std::size_t begin,
                                                             std::size_t end) {
  return read_body(lines, begin, end);
}
#endif

ReadLines widest_read() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return read_avx512;
  if (__builtin_cpu_supports("avx2")) return read_avx2;
#endif
  return read_baseline;
}

// ---- Arithmetic ---------------------------------------------------------------------------------

// Each loop keeps kChains independent accumulators, more than latency (4) times ports (2) needs,
// in registers (unrolled: an indexed array would live in memory), and returns their sum.
// Operations: rounds · kChains · lanes · 2.
constexpr int kChains = 12;
constexpr std::int64_t kRounds = 20000;

using FmaLoop = float (*)(std::int64_t rounds);
// The same for sums of products of bytes, as the int8 and int4 products form them.
using DotLoop = std::int64_t (*)(std::int64_t rounds);

struct Peak {
  const char* isa;
  int lanes;          // 32-bit ones of a step of the fma loop
  int byte_products;  // of a step of the dot loop
  FmaLoop fma;
  DotLoop dot;
  bool available;
  // Sums of products of bfloat16 numbers; null where the kernels widen them.
  int bf16_products = 0;  // of a step
  FmaLoop bf16 = nullptr;
};

// The reference kernels have no instruction set of their own: four lanes, multiply and add apart,
// is what every CPU of the architecture can do.
float fma_baseline(std::int64_t rounds) {
  typedef float Vec4 __attribute__((vector_size(16)));
  Vec4 acc[kChains] = {};
  const volatile float one = 1.0F;  // a factor that the compiler does not know
  const Vec4 x = {one, one, one, one};
  const Vec4 y = {1e-9F, 1e-9F, 1e-9F, 1e-9F};
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (Vec4& a : acc) a = a * x + y;
  }
  float sum = 0;
  for (const Vec4& a : acc) sum += a[0] + a[3];
  return sum;
}

// Four bytes of four lanes at a time, one after another: what the reference's loops do at best.
std::int64_t dot_baseline(std::int64_t rounds) {
  const volatile int some = 3;
  const int factor = some;
  std::int64_t sum = 0;
  for (std::int64_t r = 0; r < rounds * kChains; ++r) {
    int four = 0;
    for (int i = 0; i < 16; ++i) four += static_cast<std::int8_t>(r + i) * factor;
    sum += four;
  }
  return sum;
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) float fma_avx2(std::int64_t rounds) {
  __m256 acc[kChains];
  for (__m256& a : acc) a = _mm256_setzero_ps();
  const __m256 x = _mm256_set1_ps(1.0F);
  const __m256 y = _mm256_set1_ps(1e-9F);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (__m256& a : acc) a = _mm256_fmadd_ps(a, x, y);
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm256_add_ps(acc[0], acc[i]);
  return _mm256_cvtss_f32(acc[0]);
}

__attribute__((target("avx512f"))) float fma_avx512(std::int64_t rounds) {
  __m512 acc[kChains];
  for (__m512& a : acc) a = _mm512_setzero_ps();
  const __m512 x = _mm512_set1_ps(1.0F);
  const __m512 y = _mm512_set1_ps(1e-9F);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (__m512& a : acc) a = _mm512_fmadd_ps(a, x, y);
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm512_add_ps(acc[0], acc[i]);
  return _mm512_cvtss_f32(acc[0]);
}

// One step of a chain, as assembly: the compiler must not see that the products are the same each
// time, and GCC 12 copies the sums around the intrinsic of VNNI. By value, so that the sums stay in
// registers. Without VNNI bytes are widened to 16 bits in halves: two products and two sums for the
// four of a lane.
__attribute__((target("avx2"), always_inline)) inline __m256i dot_step(__m256i sums, __m256i x,
                                                                       __m256i y) {
  __asm__(
      "vpmaddwd %1, %2, %%ymm15\n\tvpaddd %%ymm15, %0, %0\n\t"
      "vpmaddwd %2, %2, %%ymm15\n\tvpaddd %%ymm15, %0, %0"
      : "+x"(sums)
      : "x"(x), "x"(y)
      : "xmm15");
  return sums;
}
__attribute__((target("avx512f,avx512bw"), always_inline)) inline __m512i dot_step(__m512i sums,
                                                                                   __m512i x,
                                                                                   __m512i y) {
  __asm__(
      "vpmaddwd %1, %2, %%zmm31\n\tvpaddd %%zmm31, %0, %0\n\t"
      "vpmaddwd %2, %2, %%zmm31\n\tvpaddd %%zmm31, %0, %0"
      : "+v"(sums)
      : "v"(x), "v"(y)
      : "xmm31");
  return sums;
}
__attribute__((target("avx512f,avx512vnni"), always_inline)) inline __m512i dot_step_vnni(
    __m512i sums, __m512i x, __m512i y) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(y));
  return sums;
}

__attribute__((target("avx2"))) std::int64_t dot_avx2(std::int64_t rounds) {
  __m256i acc[kChains];
  for (__m256i& a : acc) a = _mm256_setzero_si256();
  const volatile int some = 0x00030002;
  const __m256i x = _mm256_set1_epi32(some), y = _mm256_set1_epi32(some + 1);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (__m256i& a : acc) a = dot_step(a, x, y);
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm256_add_epi32(acc[0], acc[i]);
  return _mm256_extract_epi32(acc[0], 0);
}
__attribute__((target("avx512f,avx512bw"))) std::int64_t dot_avx512(std::int64_t rounds) {
  __m512i acc[kChains];
  for (__m512i& a : acc) a = _mm512_setzero_si512();
  const volatile int some = 0x00030002;
  const __m512i x = _mm512_set1_epi32(some), y = _mm512_set1_epi32(some + 1);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (__m512i& a : acc) a = dot_step(a, x, y);
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm512_add_epi32(acc[0], acc[i]);
  return _mm512_reduce_add_epi32(acc[0]);
}
// AVX-VNNI: its own encoding of the instruction.
__attribute__((target("avx2"))) std::int64_t dot_avx2vnni(std::int64_t rounds) {
  __m256i acc[kChains];
  for (__m256i& a : acc) a = _mm256_setzero_si256();
  const volatile int some = 0x01020301;
  const __m256i x = _mm256_set1_epi32(some);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (__m256i& a : acc) __asm__("%{vex%} vpdpbusd %1, %1, %0" : "+x"(a) : "x"(x));
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm256_add_epi32(acc[0], acc[i]);
  return _mm256_extract_epi32(acc[0], 0);
}
// Tiles: four of sums, as the products hold them, kChains products a round.
std::int64_t dot_amx(std::int64_t rounds) {
  using namespace kvik::kernels;
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile) shapes.rows[tile] = 16, shapes.bytes[tile] = 64;
  tiles_begin(shapes);
  for (std::int64_t r = 0; r < rounds; ++r) {
    static_assert(kChains == 12);
    for (int i = 0; i < 3; ++i) {
      tile_dot_unsigned<0, 4, 6>();
      tile_dot_unsigned<1, 4, 7>();
      tile_dot_unsigned<2, 5, 6>();
      tile_dot_unsigned<3, 5, 7>();
    }
  }
  tiles_end();
  return rounds;
}
float bf16_amx(std::int64_t rounds) {
  using namespace kvik::kernels;
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile) shapes.rows[tile] = 16, shapes.bytes[tile] = 64;
  tiles_begin(shapes);
  for (std::int64_t r = 0; r < rounds; ++r) {
    static_assert(kChains == 12);
    for (int i = 0; i < 3; ++i) {
      tile_dot_bf16<0, 4, 6>();
      tile_dot_bf16<1, 4, 7>();
      tile_dot_bf16<2, 5, 6>();
      tile_dot_bf16<3, 5, 7>();
    }
  }
  tiles_end();
  return static_cast<float>(rounds);
}
__attribute__((target("avx512f"), always_inline)) inline __m512 bf16_step(__m512 sums, __m512i x) {
  __asm__("vdpbf16ps %1, %1, %0" : "+v"(sums) : "v"(x));
  return sums;
}
__attribute__((target("avx512f"))) float bf16_avx512(std::int64_t rounds) {
  __m512 acc[kChains];
  for (__m512& a : acc) a = _mm512_setzero_ps();
  const volatile int some = 0x3f803f00;  // 1 and 0.5
  const __m512i x = _mm512_set1_epi32(some);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (__m512& a : acc) a = bf16_step(a, x);
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm512_add_ps(acc[0], acc[i]);
  return _mm512_cvtss_f32(acc[0]);
}
__attribute__((target("avx512f,avx512vnni"))) std::int64_t dot_avx512vnni(std::int64_t rounds) {
  __m512i acc[kChains];
  for (__m512i& a : acc) a = _mm512_setzero_si512();
  const volatile int some = 0x01020301;
  const __m512i x = _mm512_set1_epi32(some), y = _mm512_set1_epi32(some);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (__m512i& a : acc) a = dot_step_vnni(a, x, y);
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm512_add_epi32(acc[0], acc[i]);
  return _mm512_reduce_add_epi32(acc[0]);
}
#elif defined(__aarch64__)
float fma_neon(std::int64_t rounds) {
  float32x4_t acc[kChains];
  for (float32x4_t& a : acc) a = vdupq_n_f32(0.0F);
  const float32x4_t x = vdupq_n_f32(1.0F);
  const float32x4_t y = vdupq_n_f32(1e-9F);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (float32x4_t& a : acc) a = vfmaq_f32(y, a, x);
  }
  for (int i = 1; i < kChains; ++i) acc[0] = vaddq_f32(acc[0], acc[i]);
  return vgetq_lane_f32(acc[0], 0);
}

// As dot_neon.h forms them: halves widened, added in pairs, and added to the sums in pairs.
std::int64_t dot_neon(std::int64_t rounds) {
  int32x4_t acc[kChains];
  for (int32x4_t& a : acc) a = vdupq_n_s32(0);
  const volatile signed char some = 3;
  const int8x16_t x = vdupq_n_s8(some);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int32x4_t& a : acc) {
      // As assembly: the compiler must not see that the products are the same each time.
      int16x8_t low, high;
      __asm__(
          "smull %1.8h, %3.8b, %3.8b\n\tsmull2 %2.8h, %3.16b, %3.16b\n\t"
          "addp %1.8h, %1.8h, %2.8h\n\tsadalp %0.4s, %1.8h"
          : "+w"(a), "=&w"(low), "=&w"(high)
          : "w"(x));
    }
  }
  for (int i = 1; i < kChains; ++i) acc[0] = vaddq_s32(acc[0], acc[i]);
  return vgetq_lane_s32(acc[0], 0);
}
__attribute__((target("arch=armv8.2-a+dotprod"))) std::int64_t dot_neondot(std::int64_t rounds) {
  int32x4_t acc[kChains];
  for (int32x4_t& a : acc) a = vdupq_n_s32(0);
  const volatile signed char some = 3;
  const int8x16_t x = vdupq_n_s8(some);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int32x4_t& a : acc) __asm__("sdot %0.4s, %1.16b, %1.16b" : "+w"(a) : "w"(x));
  }
  for (int i = 1; i < kChains; ++i) acc[0] = vaddq_s32(acc[0], acc[i]);
  return vgetq_lane_s32(acc[0], 0);
}
#endif

std::vector<Peak> known_peaks() {
  using kernels::Isa;
  const auto here = [](Isa isa) { return kernels::table_for(isa) != nullptr; };
  std::vector<Peak> peaks = {{"reference", 4, 16, fma_baseline, dot_baseline, true}};
#if defined(__x86_64__)
  peaks.push_back({"avx2", 8, 32, fma_avx2, dot_avx2, here(Isa::kAvx2)});
  peaks.push_back({"avx2vnni", 8, 32, fma_avx2, dot_avx2vnni, here(Isa::kAvx2Vnni)});
  peaks.push_back({"avx512", 16, 64, fma_avx512, dot_avx512, here(Isa::kAvx512)});
  peaks.push_back({"avx512vnni", 16, 64, fma_avx512, dot_avx512vnni, here(Isa::kAvx512Vnni)});
  peaks.push_back(
      {"avx512bf16", 16, 64, fma_avx512, dot_avx512vnni, here(Isa::kAvx512Bf16), 32, bf16_avx512});
  peaks.push_back(
      {"amx", 16, 16 * 16 * 64, fma_avx512, dot_amx, here(Isa::kAmx), 16 * 16 * 32, bf16_amx});
#elif defined(__aarch64__)
  peaks.push_back({"neon", 4, 16, fma_neon, dot_neon, here(Isa::kNeon)});
  peaks.push_back({"neondot", 4, 16, fma_neon, dot_neondot, here(Isa::kNeonDot)});
#endif
  return peaks;
}

Peak find_peak(const std::string& isa) {
  std::string known;
  for (const Peak& peak : known_peaks()) {
    if (!peak.available) continue;
    if (isa == peak.isa) return peak;
    known += (known.empty() ? "" : ", ") + std::string(peak.isa);
  }
  throw Error(ErrorCode::kInvalidArgument,
              "no arithmetic to measure for '" + isa + "': this CPU has " + known);
}

// The fastest of as many rounds as fit into `seconds`, at least three; a round is `work` units.
template <typename Round>
double best_rate(double work, double seconds, const Round& round) {
  round();  // starts the threads, warms the caches
  double best = 0;
  const Clock::time_point begin = Clock::now();
  for (int rounds = 0; rounds < 3 || seconds_since(begin) < seconds; ++rounds) {
    const Clock::time_point start = Clock::now();
    round();
    best = std::max(best, work / seconds_since(start));
  }
  return best;
}

}  // namespace

double read_bandwidth(std::size_t bytes, int threads, double seconds) {
  check_arguments(threads, seconds);
  if (bytes < 1 || bytes > (std::size_t{1} << 46)) {
    throw Error(ErrorCode::kInvalidArgument, "bytes must be between 1 and 2^46");
  }
  const std::size_t count = (bytes + sizeof(Line) - 1) / sizeof(Line);
  const AlignedBuffer buffer(count * sizeof(Line));
  std::memset(buffer.data(), 1, buffer.size());
  const Line* lines = buffer.as<Line>();
  const std::size_t passes = std::max<std::size_t>(1, kLeastRound / buffer.size());
  const ReadLines read = widest_read();

  ThreadPool pool(threads);
  const auto round = [&] {
    pool.run([&](int worker, int workers) {
      const Range part = split_range(static_cast<std::int64_t>(count), worker, workers, 4);
      std::uint64_t folded = 0;
      for (std::size_t pass = 0; pass < passes; ++pass) {
        folded +=
            read(lines, static_cast<std::size_t>(part.begin), static_cast<std::size_t>(part.end));
      }
      sink.fetch_add(folded, std::memory_order_relaxed);
    });
  };
  return best_rate(static_cast<double>(buffer.size() * passes), seconds, round);
}

double fma_peak(const std::string& isa, int threads, double seconds) {
  check_arguments(threads, seconds);
  const Peak peak = find_peak(isa);
  ThreadPool pool(threads);
  const auto round = [&] {
    pool.run([&](int, int) {
      sink.fetch_add(static_cast<std::uint64_t>(peak.fma(kRounds) * 1e6F),
                     std::memory_order_relaxed);
    });
  };
  const double operations =
      2.0 * static_cast<double>(kRounds) * kChains * peak.lanes * static_cast<double>(threads);
  return best_rate(operations, seconds, round);
}

double bf16_peak(const std::string& isa, int threads, double seconds) {
  check_arguments(threads, seconds);
  const Peak peak = find_peak(isa);
  if (peak.bf16 == nullptr) return fma_peak(isa, threads, seconds);
  ThreadPool pool(threads);
  const auto round = [&] {
    pool.run([&](int, int) {
      sink.fetch_add(static_cast<std::uint64_t>(peak.bf16(kRounds)), std::memory_order_relaxed);
    });
  };
  const double operations =
      2.0 * static_cast<double>(kRounds) * kChains * peak.bf16_products * threads;
  return best_rate(operations, seconds, round);
}

double dot_peak(const std::string& isa, int threads, double seconds) {
  check_arguments(threads, seconds);
  const Peak peak = find_peak(isa);
  ThreadPool pool(threads);
  const auto round = [&] {
    pool.run([&](int, int) {
      sink.fetch_add(static_cast<std::uint64_t>(peak.dot(kRounds)), std::memory_order_relaxed);
    });
  };
  const double operations =
      2.0 * static_cast<double>(kRounds) * kChains * peak.byte_products * threads;
  return best_rate(operations, seconds, round);
}

}  // namespace kvik::bindings
