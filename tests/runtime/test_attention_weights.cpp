// The weights of attentions: equal to a plain reference, to the same bits whatever the threads and
// chunks; and of the graphs that a session runs.
#include "cpp/check.h"
#include "kernels/support.h"
#include "runtime/tiny_onnx.h"
#include "runtime/tiny_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kvik/kvik.h"
#include "ops/packed_weights.h"
#include "runtime/executor.h"
#include "runtime/row_decoder.h"

namespace {

using namespace kvik;
using namespace kvik::runtime;
using kvik::test::for_each_isa;
using kvik::test::thrown;
using kvik::test::tiny_onnx;
using kvik::test::TinyModel;
using kvik::test::TinyRows;
using kvik::test::TinyShape;
using Tokens = std::vector<std::int64_t>;

Tokens random_tokens(std::int64_t count, std::int64_t below, std::uint64_t stream) {
  kvik::test::Random random(stream);
  Tokens tokens;
  for (std::int64_t i = 0; i < count; ++i) tokens.push_back(random.integer(0, below - 1));
  return tokens;
}

std::span<const float> floats(const AttentionWeights& group) {
  return {group.weights.as<float>(), static_cast<std::size_t>(group.weights.elements())};
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

struct Rig {
  Rig(const TinyShape& shape, int threads, int max_rows,
      const kernels::KernelTable& table = kernels::active_table(),
      CacheType cache = CacheType::kF32)
      : pool(threads),
        rows(TinyRows(shape).rows()),
        decoder(std::make_unique<RowProgram>(rows, Engine{table, pool, weights}, max_rows, cache)) {
  }
  std::vector<AttentionWeights> attention(const Tokens& tokens,
                                          const AttentionChoice& choice = {}) {
    return decoder.attention({.text = {tokens, {}}, .target = {}, .choice = choice}, {});
  }

  ThreadPool pool;
  ops::WeightCache weights;
  std::shared_ptr<const graph::RowGraph> rows;
  RowDecoder decoder;
};

// Layer 0 of a tiny model, [heads, tokens, tokens], in double precision from the queries and keys
// that the general executor gives.
std::vector<double> reference(Rig& rig, const TinyShape& shape, const Tokens& tokens) {
  const graph::Graph& graph = rig.rows->graph;
  const graph::Node& node = graph.nodes[static_cast<std::size_t>(rig.rows->attention[0].node)];
  const std::vector<graph::ValueId> wanted{node.inputs[0], node.inputs[1]};
  const GraphExecutor executor(graph, {kernels::active_table(), rig.pool, rig.weights}, {}, wanted);
  const auto count = static_cast<std::int64_t>(tokens.size());
  Tokens ids = tokens, positions(tokens.size());
  for (std::int64_t i = 0; i < count; ++i) positions[static_cast<std::size_t>(i)] = i;
  const std::vector<Tensor> inputs{{DType::kI64, Dims{count}, ids.data()},
                                   {DType::kI64, Dims{count}, positions.data()}};
  const auto found = executor.run(inputs);
  const float* q = found[0].tensor.as<const float>();
  const float* k = found[1].tensor.as<const float>();
  std::vector<double> out(static_cast<std::size_t>(shape.heads * count * count), 0.0);
  for (int h = 0; h < shape.heads; ++h) {
    const int own = h / (shape.heads / shape.kv_heads);
    for (std::int64_t i = 0; i < count; ++i) {
      double* row = out.data() + (h * count + i) * count;
      double top = -std::numeric_limits<double>::infinity(), total = 0.0;
      const std::int64_t first =
          shape.window > 0 ? std::max<std::int64_t>(0, i - shape.window + 1) : 0;
      for (std::int64_t j = first; j <= i; ++j) {
        double score = 0.0;
        for (int d = 0; d < shape.head_dim; ++d) {
          score += static_cast<double>(q[(i * shape.heads + h) * shape.head_dim + d]) *
                   static_cast<double>(k[(j * shape.kv_heads + own) * shape.head_dim + d]);
        }
        score /= std::sqrt(static_cast<double>(shape.head_dim));
        if (shape.alibi) score += static_cast<double>((j - i) * (h + 1));
        row[j] = score;
        top = std::max(top, score);
      }
      for (std::int64_t j = first; j <= i; ++j) total += row[j] = std::exp(row[j] - top);
      for (std::int64_t j = first; j <= i; ++j) row[j] /= total;
    }
  }
  return out;
}

const std::vector<TinyShape>& shapes() {
  static const std::vector<TinyShape> kShapes{
      {},
      {.heads = 3, .kv_heads = 3, .head_dim = 5},
      {.window = 20},
      {.alibi = true},
      {.split = true, .swap = true},
      {.heads = 4, .kv_heads = 1, .window = 70, .alibi = true}};
  return kShapes;
}

double worst_difference(std::span<const float> got, const std::vector<double>& want) {
  double worst = 0.0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    // What is hidden is hidden: exactly 0, not nearly.
    if (want[i] == 0.0 && got[i] != 0.0F) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, std::abs(static_cast<double>(got[i]) - want[i]));
  }
  return worst;
}

KVIK_TEST(weights_equal_a_plain_reference) {
  const Tokens tokens = random_tokens(150, 61, 1);
  for_each_isa([&](const kernels::KernelTable& table) {
    for (const TinyShape& shape : shapes()) {
      Rig rig(shape, 2, 256, table);
      const auto want = reference(rig, shape, tokens);
      const auto found = rig.attention(tokens);
      CHECK_EQ(found.size(), std::size_t{1});
      CHECK(found[0].kind == AttentionKind::kSelf);
      const std::vector<std::int64_t> dims{shape.layers, shape.heads, 150, 150};
      CHECK_EQ(found[0].weights.dims, dims);
      CHECK_EQ(found[0].layers, (std::vector<int>{0, 1}));
      const double worst = worst_difference(floats(found[0]), want);
      CHECK(worst < 2e-6) << table.name << ": " << worst;
      // A reference of another window is noticed.
      TinyShape other = shape;
      other.window = 19;
      Rig twin(shape, 1, 256, table);
      CHECK(worst_difference(floats(found[0]), reference(twin, other, tokens)) > 1e-3);
    }
  });
}

// The keys as the cache holds them, whose rounding is in the weights.
KVIK_TEST(weights_are_those_of_the_cache) {
  const Tokens tokens = random_tokens(150, 61, 2);
  for_each_isa([&](const kernels::KernelTable& table) {
    Rig exact({}, 1, 256, table);
    const auto want = reference(exact, {}, tokens);
    double before = 2e-6;
    for (const CacheType cache : {CacheType::kBF16, CacheType::kI8}) {
      Rig rig({}, 2, 256, table, cache);
      const double worst = worst_difference(floats(rig.attention(tokens)[0]), want);
      CHECK(worst > before && worst < 0.05) << table.name << ": " << worst;
      before = 1e-4;
    }
  });
}

KVIK_TEST(rows_of_weights_sum_to_one) {
  Rig rig({.alibi = true}, 2, 64);
  const auto found = rig.attention(random_tokens(150, 61, 3));
  const auto all = floats(found[0]);
  for (std::size_t row = 0; row < all.size() / 150; ++row) {
    double sum = 0.0;
    for (std::size_t j = 0; j < 150; ++j) sum += static_cast<double>(all[row * 150 + j]);
    CHECK(std::abs(sum - 1.0) < 1e-5) << "row " << row << ": " << sum;
  }
}

KVIK_TEST(weights_bitwise_over_threads_and_chunks) {
  // More keys than a segment, too.
  for (const int count : {1, 63, 150, 1100}) {
    const Tokens tokens = random_tokens(count, 61, 4);
    for (TinyShape shape : {TinyShape{}, TinyShape{.window = 70, .alibi = true}}) {
      shape.context = 1200;
      Rig whole(shape, 1, 2048);
      const auto want = whole.attention(tokens);
      for (const int threads : {1, 3}) {
        for (const int max_rows : {7, 64, 256}) {
          Rig other(shape, threads, max_rows);
          CHECK(same_bits(floats(other.attention(tokens)[0]), floats(want[0])))
              << count << " tokens, " << threads << " threads, chunks of " << max_rows;
        }
      }
    }
  }
}

KVIK_TEST(layers_are_chosen) {
  Rig rig({.layers = 3}, 1, 64);
  const Tokens tokens = random_tokens(9, 61, 5);
  const auto all = rig.attention(tokens);
  const auto some = rig.attention(tokens, {.layers = {2, 0}});
  CHECK_EQ(some[0].layers, (std::vector<int>{0, 2}));
  const std::size_t each = floats(all[0]).size() / 3;
  CHECK(same_bits(floats(some[0]).first(each), floats(all[0]).first(each)));
  CHECK(same_bits(floats(some[0]).last(each), floats(all[0]).last(each)));
  CHECK(thrown([&] { rig.attention(tokens, {.layers = {3}}); }).find("0 to 2") !=
        std::string::npos);
  CHECK(thrown([&] {
          rig.attention(tokens, {.kind = AttentionKind::kCross});
        }).find("self (3 layers)") != std::string::npos);
}

// What a sequence computes is the same with and without somebody who asks.
KVIK_TEST(asking_changes_nothing) {
  const Model model = Model::from_bytes(tiny_onnx({}), {.threads = 2});
  const Tokens tokens = random_tokens(40, 40, 6);
  const auto logits = [&] {
    Sequence sequence = model.new_sequence();
    std::vector<float> out(40 * 40);
    model.forward({{&sequence, tokens, Logits::kAll}}, out);
    return out;
  };
  const auto before = logits();
  (void)model.attention({tokens, {}});
  CHECK(same_bits(logits(), before));
}

// Rows, rows of whole sequences, and the graph as it stands, which computes them in double
// precision.
KVIK_TEST(every_way_to_run_gives_the_same) {
  for (const bool causal : {true, false}) {
    const auto bytes = tiny_onnx({.causal = causal});
    const Tokens tokens = random_tokens(67, 40, 7);
    const Model rows = Model::from_bytes(bytes, {.threads = 2, .max_rows = 16});
    const Model graph = Model::from_bytes(bytes, {.threads = 1, .incremental = false});
    CHECK(!graph.info().incremental);
    const auto got = rows.attention({tokens, {}}), want = graph.attention({tokens, {}});
    CHECK_EQ(got.size(), std::size_t{1});
    CHECK_EQ(got[0].weights.dims, want[0].weights.dims);
    CHECK_EQ(got[0].weights.dims, (std::vector<std::int64_t>{1, 2, 67, 67}));
    const auto a = floats(got[0]), b = floats(want[0]);
    float worst = 0.0F;
    for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
    CHECK(worst < 2e-6F) << worst;
    CHECK_EQ(a[1] == 0.0F, causal);  // the first token and the second

    const Session session = Session::from_bytes(bytes, {.threads = 2});
    const std::int64_t dims[] = {1, 67};
    const Feed feeds[] = {{session.inputs()[0].name, {DType::kI64, dims, tokens.data()}}};
    const auto found = session.attention(feeds);
    CHECK_EQ(found[0].weights.dims, (std::vector<std::int64_t>{1, 1, 2, 67, 67}));
    CHECK(same_bits(floats(found[0]), b));
  }
}

KVIK_TEST(impossible_requests) {
  const Model model = Model::from_bytes(tiny_onnx({}), {.threads = 1});
  const Tokens tokens = random_tokens(71, 40, 8);
  const std::span<const std::int64_t> some = std::span(tokens).first(5);
  CHECK(thrown([&] { (void)model.attention({tokens, {}}); }).find("context of 70") !=
        std::string::npos);
  CHECK(thrown([&] { (void)model.attention({{}, {}}); }).find("no tokens") != std::string::npos);
  CHECK(thrown([&] { (void)model.attention({some, {}}, some); }).find("one sequence") !=
        std::string::npos);
  const Model chunks = Model::from_bytes(tiny_onnx({}), {.threads = 1, .max_rows = 2});
  CHECK(thrown([&] {
          (void)chunks.attention({some, {}}, {}, {}, [] { return true; });
        }).find("cancelled") != std::string::npos);
  CHECK(chunks.attention({some, {}}).size() == 1);  // and it can be used again
  const auto huge = Tokens(5, 40);
  CHECK(thrown([&] { (void)model.attention({huge, {}}); }).find("token id 40") !=
        std::string::npos);
}

}  // namespace

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
