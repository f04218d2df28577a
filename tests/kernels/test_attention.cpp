// Attention over blocks: against the reference, which computes in double; row by row against all at
// once; and whatever lies in the positions that a row does not see.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "base/aligned_buffer.h"
#include "kernels/support.h"

using namespace kvik::test;
using kvik::AlignedBuffer;
using kvik::kernels::AttentionArgs;
using kvik::kernels::KernelTable;
using kvik::kernels::kKvBlock;
using kvik::kernels::kReferenceTable;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Setup {
  int rows, head_dim, value_dim, keys;
  enum Mask { kCausal, kWindow, kRandom, kSameKeys } mask = kCausal;
  float softcap = 0.0f;
  bool bias = false;
};

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
      k_storage.push_back(std::make_unique<Guarded>(s.head_dim * kKvBlock, b % 3));
      v_storage.push_back(std::make_unique<Guarded>(s.value_dim * kKvBlock, b % 2));
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
      kReferenceTable.store_kv_f32(k.data(), s.head_dim, v.data(), s.value_dim, j % kKvBlock,
                                   k_storage[at(j / kKvBlock)]->data(),
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
  std::vector<const float*> k_blocks, v_blocks;
  std::vector<std::int64_t> first, last;
};

void run(const KernelTable& table, AttentionArgs args) {
  const std::size_t floats = table.attention_scratch(args.rows, args.value_dim);
  AlignedBuffer scratch(floats * sizeof(float));
  std::fill_n(scratch.as<float>(), floats, std::nanf(""));
  args.scratch = scratch.as<float>();
  table.attention_f32(args);
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
                       variant % 2 == 1});
      }
    }
  }
  return all;
}

std::string name_of(const KernelTable& table, const Setup& s) {
  return std::string(table.name) + " rows " + std::to_string(s.rows) + " dims " +
         std::to_string(s.head_dim) + "/" + std::to_string(s.value_dim) + " keys " +
         std::to_string(s.keys) + " mask " + std::to_string(s.mask) +
         (s.softcap != 0.0f ? " softcap" : "") + (s.bias ? " bias" : "");
}

// A score is off by the dot product's steps on Σ|q||k|·scale and a few roundings of its own; a
// weight by that and exp's error, in relation; the sum of weighted values by a step per key and one
// per block and rescaling; the quotient once more for the sum of the weights.
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
    const double blocks = range / kKvBlock + 2.0;
    const double relative =
        2.0 * score + kEps * (2.0 * (2.0 * norm + 2.0) + 2.0 * 2.0 + range + 8.0 * blocks + 4.0);
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
                 p.k_blocks[Problem::at(static_cast<int>(j / 64))][d * 64 + j % 64];
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
          sum += weights[i] *
                 p.v_blocks[Problem::at(static_cast<int>(j / 64))][(j % 64) * s.value_dim + d];
        }
        want.push_back(total == 0.0 ? 0.0 : sum / total);
        tolerance.push_back(4.0 * kEps);  // one rounding to float of at most 1, and double's own
      }
    }
    expect_close(name_of(kReferenceTable, s), got, want, tolerance, 5e-3);
  }
}

KVIK_TEST(rows_are_independent) {
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
      if (s.rows > 7) continue;
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
      CHECK_EQ(p.out.at(0, d), p.v_blocks[2][(150 % 64) * s.value_dim + d]) << table.name;
      CHECK_EQ(p.out.at(1, d), 0.0f) << table.name;
    }
    p.bias.at(1, 3) = std::nanf("");
    attend(table, p);
    for (int d = 0; d < s.value_dim; ++d) {
      CHECK(!std::isnan(p.out.at(0, d)) && std::isnan(p.out.at(1, d))) << table.name;
    }
  });
}

KVIK_TEST(store_kv_writes_one_position) {
  for_each_isa([](const KernelTable& table) {
    for (auto [head_dim, value_dim] : {std::pair(1, 1), {7, 20}, {64, 64}, {33, 17}}) {
      for (int slot : {0, 1, 31, 63}) {
        Random random(3);
        Guarded k(head_dim), v(value_dim), kb(head_dim * kKvBlock), vb(value_dim * kKvBlock);
        k.fill(random, -1.0f, 1.0f);
        v.fill(random, -1.0f, 1.0f);
        table.store_kv_f32(k.data(), head_dim, v.data(), value_dim, slot, kb.data(), vb.data());
        for (int i = 0; i < head_dim * kKvBlock; ++i) {
          CHECK(i % kKvBlock == slot ? same_bits(kb[i], k[i / kKvBlock]) : is_poison(kb[i]));
        }
        for (int i = 0; i < value_dim * kKvBlock; ++i) {
          CHECK(i / value_dim == slot ? same_bits(vb[i], v[i % value_dim]) : is_poison(vb[i]));
        }
        CHECK(kb.intact() && vb.intact()) << table.name;
      }
    }
  });
}

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
