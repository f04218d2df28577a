// Attention over blocks of every type: against the reference, which computes in double; row by row
// and segment by segment against all at once; and whatever lies in the positions that a row does
// not see.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "base/aligned_buffer.h"
#include "base/float16.h"
#include "kernels/support.h"

using namespace kvik::test;
using kvik::AlignedBuffer;
using kvik::CacheType;
using kvik::kernels::AttentionArgs;
using kvik::kernels::AttentionPart;
using kvik::kernels::cache_block_bytes;
using kvik::kernels::cache_scale_bytes;
using kvik::kernels::CacheRows;
using kvik::kernels::KernelTable;
using kvik::kernels::kKvBlock;
using kvik::kernels::kKvSegment;
using kvik::kernels::kReferenceTable;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Setup {
  int rows, head_dim, value_dim, keys;
  enum Mask { kCausal, kWindow, kRandom, kSameKeys } mask = kCausal;
  float softcap = 0.0f;
  bool bias = false;
  CacheType cache = CacheType::kF32;
};

std::int64_t block_floats(CacheType type, int dim) {
  return cache_block_bytes(type, dim) / static_cast<std::int64_t>(sizeof(float));
}

// Element `at` of a block, at `position`.
double element(CacheType type, const void* block, std::int64_t position, std::int64_t at) {
  const auto* data = static_cast<const std::uint8_t*>(block) + cache_scale_bytes(type);
  if (type == CacheType::kF32) return reinterpret_cast<const float*>(data)[at];
  if (type == CacheType::kBF16) {
    return kvik::BFloat16::to_float(reinterpret_cast<const std::uint16_t*>(data)[at]);
  }
  return static_cast<double>(static_cast<const float*>(block)[position]) *
         reinterpret_cast<const std::int8_t*>(data)[at];
}

// Queries, a cache of blocks that are not adjacent, visible ranges and an output.
struct Problem {
  Problem(const Setup& setup, std::uint64_t stream)
      : s(setup),
        random(stream),
        q(s.rows, s.head_dim, s.head_dim + random.integer(0, 5)),
        out(s.rows, s.value_dim, s.value_dim + random.integer(0, 5)),
        bias(s.rows, s.keys, s.keys + 3) {
    q.fill(random, -2.0f, 2.0f);
    const int blocks = (s.keys + kKvBlock - 1) / kKvBlock;
    for (int b = 0; b < blocks; ++b) {
      k_storage.push_back(std::make_unique<Guarded>(block_floats(s.cache, s.head_dim), b % 3));
      v_storage.push_back(std::make_unique<Guarded>(block_floats(s.cache, s.value_dim), b % 2));
      k_blocks.push_back(k_storage.back()->data());
      v_blocks.push_back(v_storage.back()->data());
    }
    fill_unwritten(0.0f, 0.0f);
    write_keys();
    choose_visible();
    for (int r = 0; r < s.rows; ++r) {  // only what is visible may be read
      for (std::int64_t j = first[at(r)]; j <= last[at(r)]; ++j) {
        bias.at(r, j) = random.integer(0, 20) == 0 ? -kInf : random.uniform(-1.0f, 1.0f);
      }
    }
  }

  static std::size_t at(int r) { return static_cast<std::size_t>(r); }

  // Every position of every block, before the keys are written over it.
  void fill_unwritten(float low, float high) {
    for (auto& block : k_storage) block->fill(random, low, high);
    for (auto& block : v_storage) block->fill(random, low, high);
  }

  void write_keys() {
    Random values(99);
    Guarded k(s.head_dim), v(s.value_dim);
    for (int j = 0; j < s.keys; ++j) {
      k.fill(values, -1.0f, 1.0f);
      v.fill(values, -1.0f, 1.0f);
      const CacheRows row{.k = k.data(),
                          .k_stride = 0,
                          .v = v.data(),
                          .v_stride = 0,
                          .head_dim = s.head_dim,
                          .value_dim = s.value_dim,
                          .slot = j % kKvBlock,
                          .count = 1};
      kReferenceTable.store_kv(s.cache, row, k_storage[at(j / kKvBlock)]->data(),
                               v_storage[at(j / kKvBlock)]->data());
    }
  }

  void choose_visible() {
    for (int r = 0; r < s.rows; ++r) {
      const int end = s.keys - s.rows + r;  // causal: the last row sees the last key
      switch (s.mask) {
        case Setup::kCausal: first.push_back(0), last.push_back(end); break;
        case Setup::kWindow: first.push_back(std::max(0, end - 9)), last.push_back(end); break;
        case Setup::kSameKeys: first.push_back(0), last.push_back(s.keys - 1); break;
        case Setup::kRandom:  // some of them empty
          first.push_back(random.integer(0, s.keys - 1));
          last.push_back(random.integer(first.back() - 2, s.keys - 1));
          break;
      }
    }
  }

  AttentionArgs args(const Matrix& to, int row = 0, int rows = -1) const {
    return {.q = q.row(row),
            .q_stride = q.stride,
            .rows = rows < 0 ? s.rows : rows,
            .head_dim = s.head_dim,
            .value_dim = s.value_dim,
            .cache = s.cache,
            .k_blocks = k_blocks.data(),
            .v_blocks = v_blocks.data(),
            .first_key = first.data() + row,
            .last_key = last.data() + row,
            .scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim)),
            .softcap = s.softcap,
            .bias = s.bias ? bias.row(row) : nullptr,
            .bias_stride = bias.stride,
            .out = to.row(row),
            .out_stride = to.stride,
            .scratch = nullptr};
  }

  Setup s;
  Random random;
  Matrix q, out, bias;
  std::vector<std::unique_ptr<Guarded>> k_storage, v_storage;
  std::vector<const void*> k_blocks, v_blocks;
  std::vector<std::int64_t> first, last;
};

AlignedBuffer scratch_for(const KernelTable& table, const AttentionArgs& args) {
  const std::size_t floats = table.attention_scratch(args.head_dim, args.value_dim);
  AlignedBuffer scratch(floats * sizeof(float));
  std::fill_n(scratch.as<float>(), floats, std::nanf(""));
  return scratch;
}

void run(const KernelTable& table, AttentionArgs args) {
  const AlignedBuffer scratch = scratch_for(table, args);
  args.scratch = scratch.as<float>();
  table.attention_f32(args);
}

// The sums of a segment, with memory of their own.
struct Part {
  Part(const KernelTable& table, AttentionArgs args, std::int64_t segment)
      : out(args.rows, args.value_dim, args.value_dim + 1), top(args.rows), total(args.rows) {
    const AlignedBuffer scratch = scratch_for(table, args);
    args.scratch = scratch.as<float>();
    args.out = nullptr;
    table.attention_part_f32(args, segment, view());
  }
  AttentionPart view() const { return {out.data(), out.stride, top.data(), total.data()}; }
  Matrix out;
  Guarded top, total;
};

// The same as run(), segment by segment, and those where nobody sees anything too.
void run_in_parts(const KernelTable& table, const AttentionArgs& args, std::int64_t keys) {
  const Part sums(table, args, 0);
  for (std::int64_t segment = 1; segment <= keys / kKvSegment; ++segment) {
    const Part more(table, args, segment);
    table.attention_join_f32(sums.view(), more.view(), args.rows, args.value_dim);
    CHECK(more.out.intact() && more.top.intact() && more.total.intact()) << table.name;
  }
  table.attention_divide_f32(sums.view(), args.rows, args.value_dim, args.out, args.out_stride);
}

std::vector<float> attend(const KernelTable& table, const Problem& p) {
  run(table, p.args(p.out));
  CHECK(p.out.intact() && p.q.intact()) << table.name << " wrote outside";
  return p.out.elements();
}

std::vector<Setup> setups() {
  std::vector<Setup> all;
  for (auto [head_dim, value_dim] :
       {std::pair(64, 64), {8, 8}, {1, 1}, {20, 7}, {33, 65}, {128, 96}}) {
    for (auto [rows, keys] : {std::pair(1, 1),
                              {1, 63},
                              {1, 64},
                              {1, 65},
                              {2, 200},
                              {5, 5},
                              {7, 70},
                              {13, 130},
                              {64, 64},
                              {70, 150},
                              {130, 130}}) {
      for (Setup::Mask mask : {Setup::kCausal, Setup::kWindow, Setup::kRandom, Setup::kSameKeys}) {
        const auto variant = all.size();
        all.push_back({rows, head_dim, value_dim, keys, mask, variant % 3 == 1 ? 5.0f : 0.0f,
                       variant % 2 == 1, static_cast<CacheType>(variant % 5 % 3)});
      }
    }
  }
  // Several spans of blocks, and rows that end or begin in different ones.
  for (const CacheType cache : {CacheType::kF32, CacheType::kBF16, CacheType::kI8}) {
    for (auto [rows, keys] : {std::pair(1, 256), {1, 257}, {6, 259}, {7, 700}, {66, 515}}) {
      for (Setup::Mask mask : {Setup::kCausal, Setup::kWindow, Setup::kRandom, Setup::kSameKeys}) {
        all.push_back({rows, 24, 17, keys, mask, 0.0f, rows == 7, cache});
      }
    }
  }
  // Several segments.
  for (const CacheType cache : {CacheType::kF32, CacheType::kBF16, CacheType::kI8}) {
    for (auto [rows, keys] : {std::pair(1, 1024), {1, 1025}, {2, 3000}, {70, 1060}, {8, 2050}}) {
      for (Setup::Mask mask : {Setup::kCausal, Setup::kWindow, Setup::kRandom}) {
        all.push_back({rows, 16, 20, keys, mask, 0.0f, rows == 2, cache});
      }
    }
  }
  return all;
}

std::string name_of(const KernelTable& table, const Setup& s) {
  return std::string(table.name) + " rows " + std::to_string(s.rows) + " dims " +
         std::to_string(s.head_dim) + "/" + std::to_string(s.value_dim) + " keys " +
         std::to_string(s.keys) + " mask " + std::to_string(s.mask) +
         (s.softcap != 0.0f ? " softcap" : "") + (s.bias ? " bias" : "") + " cache " +
         kvik::cache_type_name(s.cache);
}

// A score is off by the dot product's steps on Σ|q||k|·scale and a few roundings of its own; a
// weight by that and exp's error, in relation; the sum of weighted values by a step per key of a
// segment and one per block, rescaling and segment; the quotient once more for the sum of the
// weights.
std::vector<double> tolerances(const Problem& p) {
  const Setup& s = p.s;
  std::vector<double> all;
  for (int r = 0; r < s.rows; ++r) {
    double norm = 0.0;  // |q|·1 bounds Σ|q||k|, since |k| <= 1
    for (int d = 0; d < s.head_dim; ++d) norm += std::fabs(p.q.at(r, d));
    norm /= std::sqrt(static_cast<double>(s.head_dim));
    const double score = kEps * ((s.head_dim + 4) * norm + 4.0 * (norm + 1.0) +
                                 (s.softcap != 0.0f ? 8.0 * s.softcap : 0.0));
    const auto range = static_cast<double>(
        std::max<std::int64_t>(p.last[Problem::at(r)] - p.first[Problem::at(r)] + 1, 0));
    const double blocks = range / kKvBlock + 2.0 + 2.0 * range / kKvSegment;
    const double relative =
        2.0 * score + kEps * (2.0 * (2.0 * norm + 2.0) + 2.0 * 2.0 +
                              std::min<double>(range, kKvSegment) + 8.0 * blocks + 4.0);
    for (int d = 0; d < s.value_dim; ++d) all.push_back(relative);  // |v| <= 1
  }
  return all;
}

}  // namespace

KVIK_TEST(agrees_with_the_reference) {
  for_each_vector_isa([](const KernelTable& table) {
    std::uint64_t stream = 0;
    for (const Setup& s : setups()) {
      const Problem p(s, ++stream);
      Matrix want(s.rows, s.value_dim, s.value_dim);
      run(kReferenceTable, p.args(want));
      const std::vector<float> exact = want.elements();
      expect_close(name_of(table, s), attend(table, p), {exact.begin(), exact.end()}, tolerances(p),
                   5e-3);
      for (int r = 0; r < s.rows; ++r) {
        if (p.first[Problem::at(r)] <= p.last[Problem::at(r)]) continue;
        for (int d = 0; d < s.value_dim; ++d) CHECK_EQ(p.out.at(r, d), 0.0f) << "nothing visible";
      }
    }
  });
}

// The reference itself, against the formula, written differently: all scores first.
KVIK_TEST(reference_is_the_formula) {
  for (const Setup& s : setups()) {
    if (s.keys > 70) continue;
    const Problem p(s, 7);
    const std::vector<float> got = attend(kReferenceTable, p);
    const AttentionArgs a = p.args(p.out);
    std::vector<double> want, tolerance;
    for (int r = 0; r < s.rows; ++r) {
      std::vector<double> weights;
      double total = 0.0;
      const std::int64_t first = p.first[Problem::at(r)];
      for (std::int64_t j = first; j <= p.last[Problem::at(r)]; ++j) {
        double dot = 0.0;
        for (int d = 0; d < s.head_dim; ++d) {
          dot += static_cast<double>(p.q.at(r, d)) *
                 element(s.cache, p.k_blocks[Problem::at(static_cast<int>(j / 64))], j % 64,
                         d * 64 + j % 64);
        }
        dot *= a.scale;
        if (s.softcap != 0.0f) dot = s.softcap * std::tanh(dot / s.softcap);
        if (s.bias) dot += p.bias.at(r, j);
        weights.push_back(std::exp(dot));
        total += weights.back();
      }
      for (int d = 0; d < s.value_dim; ++d) {
        double sum = 0.0;
        for (std::size_t i = 0; i < weights.size(); ++i) {
          const std::int64_t j = first + static_cast<std::int64_t>(i);
          sum += weights[i] * element(s.cache, p.v_blocks[Problem::at(static_cast<int>(j / 64))],
                                      j % 64, (j % 64) * s.value_dim + d);
        }
        want.push_back(total == 0.0 ? 0.0 : sum / total);
        tolerance.push_back(4.0 * kEps);  // one rounding to float of at most 1, and double's own
      }
    }
    expect_close(name_of(kReferenceTable, s), got, want, tolerance, 5e-3);
  }
}

KVIK_TEST(rows_and_segments_are_independent) {
  for_each_isa([](const KernelTable& table) {
    std::uint64_t stream = 1000;
    for (const Setup& s : setups()) {
      const Problem p(s, ++stream);
      const std::vector<float> whole = attend(table, p);
      Matrix alone(s.rows, s.value_dim, s.value_dim), pairs(s.rows, s.value_dim, s.value_dim);
      for (int r = 0; r < s.rows; ++r) run(table, p.args(alone, r, 1));
      for (int r = 0; r < s.rows; r += 2) run(table, p.args(pairs, r, std::min(2, s.rows - r)));
      CHECK(same_bits(alone.elements(), whole)) << name_of(table, s) << " row by row";
      CHECK(same_bits(pairs.elements(), whole)) << name_of(table, s) << " two by two";
      Matrix parts(s.rows, s.value_dim, s.value_dim + 3);
      run_in_parts(table, p.args(parts), s.keys);
      CHECK(same_bits(parts.elements(), whole)) << name_of(table, s) << " segment by segment";
    }
  });
}

// Finite garbage, huge enough to overflow a score, in all positions after the last key and, for
// each row alone, in all positions that it does not see.
KVIK_TEST(invisible_positions_do_not_matter) {
  for_each_isa([](const KernelTable& table) {
    std::uint64_t stream = 2000;
    for (const Setup& s : setups()) {
      Problem p(s, ++stream);
      const std::vector<float> clean = attend(table, p);
      p.fill_unwritten(-3e38f, 3e38f);
      p.write_keys();
      CHECK(same_bits(attend(table, p), clean)) << name_of(table, s) << " after the last key";
      p.fill_unwritten(std::nanf(""), std::nanf(""));
      p.write_keys();
      CHECK(same_bits(attend(table, p), clean)) << name_of(table, s) << " NaN after the last key";
      if (s.rows > 7 || s.cache != CacheType::kF32) continue;
      for (int r = 0; r < s.rows; ++r) {
        for (int j = 0; j < s.keys; ++j) {
          if (j >= p.first[Problem::at(r)] && j <= p.last[Problem::at(r)]) continue;
          for (int d = 0; d < s.head_dim; ++d) {
            (*p.k_storage[Problem::at(j / 64)])[d * 64 + j % 64] = j % 2 ? 3e38f : -3e38f;
          }
          for (int d = 0; d < s.value_dim; ++d) {
            (*p.v_storage[Problem::at(j / 64)])[(j % 64) * s.value_dim + d] = -3e38f;
          }
        }
        Matrix alone(s.rows, s.value_dim, s.value_dim);
        run(table, p.args(alone, r, 1));
        for (int d = 0; d < s.value_dim; ++d) {
          CHECK(same_bits(alone.at(r, d), clean[Problem::at(r * s.value_dim + d)]))
              << name_of(table, s) << " row " << r;
        }
        // The same beside rows that do see them, and with values that no weight makes 0.
        for (int j = 0; j < s.keys; ++j) {
          if (j >= p.first[Problem::at(r)] && j <= p.last[Problem::at(r)]) continue;
          for (int d = 0; d < s.value_dim; ++d) {
            (*p.v_storage[Problem::at(j / 64)])[(j % 64) * s.value_dim + d] = std::nanf("");
          }
        }
        const std::vector<float> together = attend(table, p);
        for (int d = 0; d < s.value_dim; ++d) {
          const std::size_t i = Problem::at(r * s.value_dim + d);
          CHECK(same_bits(together[i], clean[i]))
              << name_of(table, s) << " row " << r << " beside others";
        }
        p.write_keys();
      }
    }
  });
}

// A key that a row does see must matter.
KVIK_TEST(visible_positions_matter) {
  for_each_isa([](const KernelTable& table) {
    const Setup s{3, 16, 16, 100};
    Problem p(s, 1);
    const std::vector<float> before = attend(table, p);
    for (int j = 0; j < s.keys; ++j) {
      p.write_keys();
      (*p.v_storage[Problem::at(j / 64)])[(j % 64) * s.value_dim] += 0.5f;
      const std::vector<float> after = attend(table, p);
      for (int r = 0; r < s.rows; ++r) {
        const bool sees = j <= p.last[Problem::at(r)];
        const std::size_t i = Problem::at(r * s.value_dim);
        CHECK_EQ(same_bits(after[i], before[i]), !sees) << table.name << " key " << j;
      }
    }
  });
}

// However large scores are, the largest of all has the weight 1.
KVIK_TEST(large_scores_have_weights) {
  for_each_isa([](const KernelTable& table) {
    for (const float size : {1e2f, 1e5f, 3e5f, 1e15f}) {
      for (auto [keys, best] : {std::pair(1, 0), {5, 3}, {300, 0}, {300, 70}, {300, 299}}) {
        for (const bool bias : {false, true}) {
          Setup s{1, 96, 8, keys};
          s.bias = bias;
          Problem p(s, 3);
          for (int d = 0; d < s.head_dim; ++d) p.q.at(0, d) = size;
          for (int j = 0; j < keys; ++j) {
            p.bias.at(0, j) = 0.0f;
            for (int d = 0; d < s.head_dim; ++d) {
              const float k = size * (j == best ? 1.0f : 0.1f + 0.001f * static_cast<float>(j));
              (*p.k_storage[Problem::at(j / 64)])[d * 64 + j % 64] = k;
            }
          }
          attend(table, p);
          for (int d = 0; d < s.value_dim; ++d) {
            CHECK_EQ(p.out.at(0, d), element(s.cache, p.v_blocks[Problem::at(best / 64)], best % 64,
                                             (best % 64) * s.value_dim + d))
                << table.name << " scores of " << size << ", key " << best << " of " << keys;
          }
        }
      }
    }
  });
}

// A bias of -inf hides a key for good, also when it hides whole blocks; NaN is never hidden.
KVIK_TEST(hidden_keys_and_nan) {
  for_each_isa([](const KernelTable& table) {
    Setup s{2, 16, 24, 200, Setup::kSameKeys};
    s.bias = true;
    Problem p(s, 5);
    for (int j = 0; j < s.keys; ++j) p.bias.at(0, j) = j == 150 ? 0.0f : -kInf;
    for (int j = 0; j < s.keys; ++j) p.bias.at(1, j) = -kInf;
    attend(table, p);
    for (int d = 0; d < s.value_dim; ++d) {
      CHECK_EQ(p.out.at(0, d),
               element(s.cache, p.v_blocks[2], 150 % 64, (150 % 64) * s.value_dim + d))
          << table.name;
      CHECK_EQ(p.out.at(1, d), 0.0f) << table.name;
    }
    p.bias.at(1, 3) = std::nanf("");
    attend(table, p);
    for (int d = 0; d < s.value_dim; ++d) {
      CHECK(!std::isnan(p.out.at(0, d)) && std::isnan(p.out.at(1, d))) << table.name;
    }
  });
}

// What store_kv writes: `count` positions from `slot` on and nothing else, the same bits in every
// table, and the numbers that went in, as near as the type can hold them.
KVIK_TEST(store_kv_writes_its_positions) {
  for (const CacheType type : {CacheType::kF32, CacheType::kBF16, CacheType::kI8}) {
    for (auto [head_dim, value_dim] : {std::pair(1, 1), {7, 20}, {64, 64}, {33, 17}}) {
      for (auto [slot, count] : {std::pair(0, 1), {63, 1}, {0, 64}, {5, 30}, {31, 33}}) {
        Random random(3);
        Matrix k(count, head_dim, head_dim + 2), v(count, value_dim, value_dim + 1);
        k.fill(random, -1.0f, 1.0f);
        v.fill(random, -1.0f, 1.0f);
        if (count > 3) {
          v.at(1, 0) = kInf;
          v.at(2, value_dim - 1) = std::nanf("");
          for (int d = 0; d < head_dim; ++d) k.at(2, d) = 0.0f;
        }
        const CacheRows rows{k.data(), k.stride,  v.data(), v.stride,
                             head_dim, value_dim, slot,     count};
        Guarded want_k(block_floats(type, head_dim)), want_v(block_floats(type, value_dim));
        std::fill_n(want_k.data(), want_k.size(), 0.0f);
        std::fill_n(want_v.data(), want_v.size(), 0.0f);
        kReferenceTable.store_kv(type, rows, want_k.data(), want_v.data());
        for (int p = 0; p < kKvBlock; ++p) {
          const bool there = p >= slot && p < slot + count;
          const auto check = [&](const Matrix& x, const void* block, int dim, bool key) {
            double most = 0.0;
            for (int d = 0; there && d < dim; ++d) {
              most = std::max(most, std::fabs(static_cast<double>(x.at(p - slot, d))));
            }
            for (int d = 0; d < dim; ++d) {
              const double got = element(type, block, p, key ? d * kKvBlock + p : p * dim + d);
              const double sent = there ? static_cast<double>(x.at(p - slot, d)) : 0.0;
              if (type == CacheType::kI8 && there && p - slot > 0 && p - slot < 3 && !key) {
                CHECK(std::isnan(got)) << "a row that is not finite";
                continue;
              }
              const double error = type == CacheType::kF32    ? 0.0
                                   : type == CacheType::kBF16 ? std::fabs(sent) / 256.0
                                                              : most / 127.0 * 0.5001;
              CHECK(close(static_cast<float>(got), sent, error)) << got << " for " << sent;
            }
          };
          check(k, want_k.data(), head_dim, true);
          check(v, want_v.data(), value_dim, false);
        }
        for_each_vector_isa([&](const KernelTable& table) {
          Guarded kb(want_k.size()), vb(want_v.size());
          std::fill_n(kb.data(), kb.size(), 0.0f);
          std::fill_n(vb.data(), vb.size(), 0.0f);
          table.store_kv(type, rows, kb.data(), vb.data());
          for (std::int64_t i = 0; i < kb.size(); ++i) CHECK(same_bits(kb[i], want_k[i]));
          for (std::int64_t i = 0; i < vb.size(); ++i) CHECK(same_bits(vb[i], want_v[i]));
          CHECK(kb.intact() && vb.intact()) << table.name;
        });
      }
    }
  }
}

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
