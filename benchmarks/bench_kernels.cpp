// Times the matrix product and attention on one thread, for every table of this CPU, beside the two
// ceilings that it measures in the same run: fused multiply-adds in registers, and reading memory.
//
//   bench_kernels [isa] [part of a product's name, such as 768x2304 or "int8 768x768"]
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include <time.h>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "kernels/dispatch.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/tile_amx.h"
#endif

using namespace kvik::kernels;
using kvik::AlignedBuffer;

namespace {

double seconds_of(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Best seconds of a call, over about 0.15 s of calls. The time of this thread alone: on a busy
// machine the wall clock would count others' turns too.
double best_seconds(const std::function<void()>& body, clockid_t clock = CLOCK_THREAD_CPUTIME_ID) {
  double best = 1e9, total = 0.0;
  body();
  for (int i = 0; i < 3 || (total < 0.15 && i < 100000); ++i) {
    const double start = seconds_of(clock);
    body();
    const double seconds = seconds_of(clock) - start;
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

AlignedBuffer floats(std::size_t n) {
  AlignedBuffer buffer(n * sizeof(float));
  for (std::size_t i = 0; i < n; ++i) {
    buffer.as<float>()[i] = static_cast<float>(static_cast<int>(i * 7919 % 201) - 100) * 0.01f;
  }
  return buffer;
}

#if defined(__x86_64__)
constexpr int kChains = 12, kSteps = 20000;

[[gnu::target("avx512f")]] float peak_512() {
  __m512 acc[kChains];
  for (auto& a : acc) a = _mm512_set1_ps(0.5f);
  const __m512 x = _mm512_set1_ps(0.25f);
  for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (auto& a : acc) a = _mm512_fmadd_ps(a, x, x);
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm512_add_ps(acc[0], acc[i]);
  return _mm512_cvtss_f32(acc[0]);
}

// By value, so that the sums stay in registers.
[[gnu::target("avx512f"), gnu::always_inline]] inline __m512 bf16_step(__m512 sums, __m512i x) {
  __asm__("vdpbf16ps %1, %1, %0" : "+v"(sums) : "v"(x));
  return sums;
}

[[gnu::target("avx512f")]] float bf16_peak_512() {
  __m512 acc[kChains];
  for (auto& a : acc) a = _mm512_set1_ps(0.5f);
  const __m512i x = _mm512_set1_epi32(0x3f003f00);  // 0.5, twice
  for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (auto& a : acc) a = bf16_step(a, x);
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm512_add_ps(acc[0], acc[i]);
  return _mm512_cvtss_f32(acc[0]);
}

void bf16_peak_tiles() {
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile) shapes.rows[tile] = 16, shapes.bytes[tile] = 64;
  tiles_begin(shapes);
  for (int i = 0; i < kSteps; ++i) {
    tile_dot_bf16<0, 4, 6>();
    tile_dot_bf16<1, 4, 7>();
    tile_dot_bf16<2, 5, 6>();
    tile_dot_bf16<3, 5, 7>();
  }
  tiles_end();
}

[[gnu::target("avx2,fma")]] float peak_256() {
  __m256 acc[kChains];
  for (auto& a : acc) a = _mm256_set1_ps(0.5f);
  const __m256 x = _mm256_set1_ps(0.25f);
  for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (auto& a : acc) a = _mm256_fmadd_ps(a, x, x);
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm256_add_ps(acc[0], acc[i]);
  return _mm256_cvtss_f32(acc[0]);
}

// Reads a buffer as the one-row product does: in order, fetched 4 KiB ahead.
[[gnu::target("avx2")]] float read_all(const float* p, std::size_t n) {
  __m256 acc[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                   _mm256_setzero_ps()};
  for (std::size_t i = 0; i + 32 <= n; i += 32) {
    _mm_prefetch(reinterpret_cast<const char*>(p + i + 1024), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p + i + 1040), _MM_HINT_T0);
    for (int j = 0; j < 4; ++j) acc[j] = _mm256_add_ps(acc[j], _mm256_loadu_ps(p + i + 8 * j));
  }
  return _mm256_cvtss_f32(
      _mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])));
}
#endif

volatile float sink;

#if defined(__x86_64__)
bool is_avx512(const KernelTable& table) {
  return table.isa == Isa::kAvx512 || table.isa == Isa::kAvx512Vnni ||
         table.isa == Isa::kAvx512Bf16 || table.isa == Isa::kAmx;
}
#endif

double peak_gflops(const KernelTable& table) {
#if defined(__x86_64__)
  if (is_avx512(table)) {
    return 2e-9 * 16 * kChains * kSteps / best_seconds([] { sink = peak_512(); });
  }
  if (table.isa == Isa::kAvx2 || table.isa == Isa::kAvx2Vnni) {
    return 2e-9 * 8 * kChains * kSteps / best_seconds([] { sink = peak_256(); });
  }
#endif
  (void)table;
  return 0.0;
}

// Of products of bfloat16 numbers; 0 where the table has none.
double bf16_peak_gflops([[maybe_unused]] const KernelTable& table) {
#if defined(__x86_64__)
  if (table.isa == Isa::kAvx512Bf16) {
    return 2e-9 * 32 * kChains * kSteps / best_seconds([] { sink = bf16_peak_512(); });
  }
  if (table.isa == Isa::kAmx) {
    return 2e-9 * 16 * 16 * 32 * 4 * kSteps / best_seconds(bf16_peak_tiles);
  }
#endif
  return 0.0;
}

double read_gbytes([[maybe_unused]] const AlignedBuffer& buffer) {
#if defined(__x86_64__)
  const std::size_t n = buffer.size() / sizeof(float);
  return 1e-9 * static_cast<double>(buffer.size()) /
         best_seconds([&] { sink = read_all(buffer.as<float>(), n); });
#else
  return 0.0;
#endif
}

// A product's right side in one precision, packed from w [k, n], and its left side in it.
struct Operands {
  Operands(const KernelTable& table_, const std::string& type_, std::int64_t k_, std::int64_t n_)
      : table(table_),
        type(type_),
        k(k_),
        n(n_),
        groups((k_ + kGroup - 1) / kGroup),
        panels((n_ + table_.panel - 1) / table_.panel),
        packed(static_cast<std::size_t>(panels * panel_bytes())),
        scale(static_cast<std::size_t>(panels * table_.panel) * sizeof(float)) {
    const AlignedBuffer block = floats(static_cast<std::size_t>(k * table.panel));
    for (std::int64_t p = 0; p < panels; ++p) {
      std::uint8_t* to = packed.as<std::uint8_t>() + p * panel_bytes();
      float* column_scale = scale.as<float>() + p * table.panel;
      const float* from = block.as<float>();
      if (type == "int8") {
        table.pack_i8(from, k, table.panel, to, column_scale);
      } else if (type == "int4") {
        table.pack_i4(from, k, table.panel, to, column_scale);
      } else if (type == "bf16") {
        table.pack_bf16(from, k, table.panel, reinterpret_cast<std::uint16_t*>(to));
      } else {
        table.pack_f32(from, table.panel, 1, k, table.panel, 0, 1, reinterpret_cast<float*>(to));
      }
    }
  }

  std::int64_t panel_bytes() const {
    if (type == "int8") return groups * kGroup * table.panel;
    if (type == "int4") return groups * (2 + kGroup / 2) * table.panel;
    return k * table.panel * (type == "bf16" ? 2 : 4);
  }

  // Seconds of y = x·W for that many rows, of which the rows as bytes or in bfloat16 are part.
  double seconds(std::int64_t rows) const {
    const AlignedBuffer x = floats(static_cast<std::size_t>(rows * k));
    const AlignedBuffer y(static_cast<std::size_t>(rows * n) * sizeof(float));
    const AlignedBuffer q(static_cast<std::size_t>(rows * groups * kGroup));
    const AlignedBuffer row_scale(static_cast<std::size_t>(rows) * sizeof(float));
    const AlignedBuffer sums(static_cast<std::size_t>(rows * (groups + 1)) * sizeof(std::int32_t));
    const AlignedBuffer rounded(static_cast<std::size_t>(rows * rounded_stride(k)) * 2);
    std::vector<RowOutliers> outliers(static_cast<std::size_t>(rows));
    const QuantizedRows quantized{q.as<std::int8_t>(),
                                  row_scale.as<float>(),
                                  sums.as<std::int32_t>(),
                                  outliers.data(),
                                  rows,
                                  groups};
    const IntegerPanels weights{packed.as<std::uint8_t>(), scale.as<float>()};
    return best_seconds([&] {
      if (type == "f32") {
        table.matmul_f32(x.as<float>(), k, rows, k, packed.as<float>(), n, 0, panels, {},
                         y.as<float>(), n);
      } else if (type == "bf16") {
        if (table.rounds_rows) {
          table.round_rows(x.as<float>(), k, rows, k, rounded.as<std::uint16_t>());
          table.matmul_bf16_rows({rounded.as<std::uint16_t>(), rows, k}, packed.as<std::uint16_t>(),
                                 n, 0, panels, {}, y.as<float>(), n);
          return;
        }
        table.matmul_bf16(x.as<float>(), k, rows, k, packed.as<std::uint16_t>(), n, 0, panels, {},
                          y.as<float>(), n);
      } else {
        table.quantize_rows(x.as<float>(), k, rows, k, type == "int4", q.as<std::int8_t>(),
                            row_scale.as<float>(), sums.as<std::int32_t>(), outliers.data());
        const auto product = type == "int8" ? table.matmul_i8 : table.matmul_i4;
        product(quantized, weights, n, 0, panels, {}, y.as<float>(), n);
      }
    });
  }

  const KernelTable& table;
  std::string type;
  std::int64_t k, n, groups, panels;
  AlignedBuffer packed, scale;
};

void bench_matmul(const KernelTable& table, const std::string& only) {
  struct {
    std::int64_t k, n;
  } shapes[] = {{768, 128}, {768, 768}, {768, 2304}, {768, 3072}, {3072, 768}, {768, 50257}};
  for (const auto& s : shapes) {
    for (const char* type : {"f32", "bf16", "int8", "int4"}) {
      const std::string name =
          std::string(type) + " " + std::to_string(s.k) + "x" + std::to_string(s.n);
      if (name.find(only) == std::string::npos) continue;
      const Operands operands(table, type, s.k, s.n);
      const double read = read_gbytes(operands.packed);
      std::printf("%-10s %-15s plain read %5.1f GB/s\n", table.name, name.c_str(), read);
      for (std::int64_t rows : {1, 2, 4, 7, 8, 64, 128}) {
        if (table.isa == Isa::kReference && rows * s.n > 4000) continue;
        const double seconds = operands.seconds(rows);
        const double gops = 2e-9 * static_cast<double>(rows * s.k * s.n) / seconds;
        const double gbytes = 1e-9 * static_cast<double>(operands.packed.size()) / seconds;
        std::printf(
            "  rows %4lld %9.1f us  %7.1f Gop/s  %5.1f GB/s of weights (%3.0f %% of read)\n",
            static_cast<long long>(rows), seconds * 1e6, gops, gbytes,
            read > 0 ? 100 * gbytes / read : 0.0);
      }
    }
  }
}

void bench_attention(const KernelTable& table, double peak) {
  constexpr int kDim = 64, kKeys = 1024;
  const AlignedBuffer k = floats(kDim * kKeys), v = floats(kDim * kKeys);
  std::vector<const void*> kb, vb;
  for (int b = 0; b < kKeys / kKvBlock; ++b) {
    kb.push_back(k.as<float>() + b * kDim * kKvBlock);
    vb.push_back(v.as<float>() + b * kDim * kKvBlock);
  }
  for (int rows : {1, 6, 128, 1024}) {
    if (table.isa == Isa::kReference && rows > 6) continue;
    const AlignedBuffer q = floats(static_cast<std::size_t>(rows * kDim));
    const AlignedBuffer out(static_cast<std::size_t>(rows * kDim) * sizeof(float));
    const AlignedBuffer scratch(table.attention_scratch(kDim, kDim) * sizeof(float));
    std::vector<std::int64_t> last;
    std::int64_t pairs = 0;
    for (int r = 0; r < rows; ++r) last.push_back(kKeys - rows + r), pairs += last.back() + 1;
    const AttentionArgs args{.q = q.as<float>(),
                             .q_stride = kDim,
                             .rows = rows,
                             .head_dim = kDim,
                             .value_dim = kDim,
                             .cache = kvik::CacheType::kF32,
                             .k_blocks = kb.data(),
                             .v_blocks = vb.data(),
                             .first_key = nullptr,
                             .last_key = last.data(),
                             .scale = 0.125f,
                             .softcap = 0.0f,
                             .bias = nullptr,
                             .bias_stride = 0,
                             .out = out.as<float>(),
                             .out_stride = kDim,
                             .scratch = scratch.as<float>()};
    const double seconds = best_seconds([&] { table.attention_f32(args); });
    const double gflops = 4e-9 * static_cast<double>(pairs) * kDim / seconds;
    std::printf(
        "%-9s attention rows %4d of %d keys, dim %d: %8.1f us  %6.1f GFLOP/s (%3.0f %% of "
        "peak)\n",
        table.name, rows, kKeys, kDim, seconds * 1e6, gflops, peak > 0 ? 100 * gflops / peak : 0.0);
  }
}

void bench_elementwise(const KernelTable& table) {
  const std::pair<Unary, const char*> functions[] = {
      {Unary::kExp, "exp"},          {Unary::kTanh, "tanh"}, {Unary::kErf, "erf"},
      {Unary::kGeluErf, "gelu_erf"}, {Unary::kSilu, "silu"}, {Unary::kSin, "sin"},
      {Unary::kLog, "log"}};
  const AlignedBuffer x = floats(4096), y = floats(4096);
  std::printf("%-9s ns per element:", table.name);
  for (const auto& [f, name] : functions) {
    const double seconds = best_seconds([&, f = f] {
      for (int i = 0; i < 20; ++i) table.unary_f32(f, x.as<float>(), 4096, y.as<float>());
    });
    std::printf(" %s %.2f", name, seconds * 1e9 / 4096 / 20);
  }
  std::printf("\n");
}

void bench_pool() {
  for (int threads : {1, 2, 3}) {
    kvik::ThreadPool pool(threads);
    const int runs = 10;  // few, so that the best is one that nobody interrupted
    const double seconds = best_seconds(
        [&] {
          for (int i = 0; i < runs; ++i) pool.run([](int, int) {});
        },
        CLOCK_MONOTONIC);
    std::printf("empty run of %d threads: %.2f us\n", threads, seconds * 1e6 / runs);
  }
}

}  // namespace

int main(int argc, char** argv) {
  bench_pool();
  for (const KernelTable* table : available_tables()) {
    if (argc > 1 && std::strcmp(argv[1], table->name) != 0) continue;
    const double peak = peak_gflops(*table);
    std::printf("%s: peak %.1f GFLOP/s on one thread\n", table->name, peak);
    if (table->rounds_rows) {
      std::printf("%s: peak %.1f GFLOP/s in bfloat16\n", table->name, bf16_peak_gflops(*table));
    }
    bench_elementwise(*table);
    bench_attention(*table, peak);
    bench_matmul(*table, argc > 2 ? argv[2] : "");
  }
}
