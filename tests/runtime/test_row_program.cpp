// Row programs on a small transformer: bitwise equal numbers whatever the threads, the batch, the
// chunks and the cache; wanted rows alone; and states that survive errors.
#include "cpp/check.h"
#include "kernels/support.h"
#include "runtime/tiny_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "kvik/error.h"
#include "ops/packed_weights.h"
#include "runtime/row_decoder.h"

namespace {

using namespace kvik;
using namespace kvik::runtime;
using kvik::test::for_each_isa;
using kvik::test::TinyRows;
using kvik::test::TinyShape;

// A decoder with everything it needs.
struct Engine1 {
  Engine1(const TinyShape& shape, int threads, int max_rows,
          const kernels::KernelTable& table = kernels::active_table(),
          CacheType cache = CacheType::kF32, WeightType type = WeightType::kF32)
      : pool(threads),
        weights(type),
        decoder(std::make_unique<RowProgram>(TinyRows(shape).rows(), Engine{table, pool, weights},
                                             max_rows, cache)) {}
  std::int64_t vocab() const { return decoder.program().output_features(); }

  std::vector<float> forward(std::vector<DecodeStep> steps) {
    std::int64_t rows = 0;
    for (const DecodeStep& step : steps) {
      rows += step.logits == Logits::kAll    ? static_cast<std::int64_t>(step.tokens.size())
              : step.logits == Logits::kLast ? 1
                                             : 0;
    }
    std::vector<float> logits(static_cast<std::size_t>(rows * vocab()));
    decoder.forward(steps, logits.data(), {});
    return logits;
  }
  // Logits of every token of a new sequence, given in pieces of `piece` tokens.
  std::vector<float> all(const std::vector<std::int64_t>& tokens, std::size_t piece) {
    const auto state = decoder.new_state();
    std::vector<float> out;
    for (std::size_t at = 0; at < tokens.size(); at += piece) {
      const auto part = std::span(tokens).subspan(at, std::min(piece, tokens.size() - at));
      const auto logits = forward({{state.get(), part, Logits::kAll}});
      out.insert(out.end(), logits.begin(), logits.end());
    }
    return out;
  }

  ThreadPool pool;
  ops::WeightCache weights;
  RowDecoder decoder;
};

std::vector<std::int64_t> random_tokens(std::int64_t count, std::uint64_t stream) {
  kvik::test::Random random(stream);
  std::vector<std::int64_t> tokens;
  for (std::int64_t i = 0; i < count; ++i) tokens.push_back(random.integer(0, 60));
  return tokens;
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

const std::vector<TinyShape>& shapes() {
  static const std::vector<TinyShape> kShapes{
      {},
      {.heads = 3, .kv_heads = 3, .head_dim = 5},
      {.window = 20},
      {.alibi = true},
      {.split = true},
      {.split = true, .swap = true},
      {.heads = 4, .kv_heads = 1, .window = 70, .alibi = true},
      {.cell = "LSTM"},
      {.cell = "GRU"},
      {.cell = "GRU", .before = false},
      {.cell = "RNN", .both = true}};
  return kShapes;
}

KVIK_TEST(rows_bitwise_over_threads_chunks_and_cache) {
  const auto tokens = random_tokens(150, 3);
  for (const auto* table : kernels::available_tables()) {
    for (const TinyShape& shape : shapes()) {
      Engine1 reference(shape, 1, 256, *table);
      const auto want = reference.all(tokens, tokens.size());
      CHECK(std::all_of(want.begin(), want.end(), [](float x) { return std::isfinite(x); }));
      for (const int threads : {1, 2, 3}) {
        for (const int max_rows : {1, 5, 64, 256}) {
          Engine1 other(shape, threads, max_rows, *table);
          CHECK(same_bits(other.all(tokens, tokens.size()), want))
              << table->name << ", threads " << threads << ", chunks of " << max_rows;
        }
        Engine1 other(shape, threads, 256, *table);
        for (const std::size_t piece : {1, 7, 64}) {
          CHECK(same_bits(other.all(tokens, piece), want))
              << table->name << ", threads " << threads << ", calls of " << piece << " tokens";
        }
      }
    }
  }
}

// The same with weights in low precision, whose products make something of their rows first.
KVIK_TEST(rows_bitwise_in_low_precision) {
  // Wide enough that their matrices are not kept in fp32.
  const TinyShape kShapes[] = {
      {.layers = 1, .heads = 8, .linear = true},
      {.layers = 1, .heads = 8, .linear = true, .cell = "LSTM"},
      {.layers = 1, .heads = 8, .linear = true, .cell = "GRU"},
  };
  const auto tokens = random_tokens(70, 5);
  for (const TinyShape& shape : kShapes)
    for_each_isa([&](const kernels::KernelTable& table) {
      std::vector<float> before = Engine1(shape, 1, 256, table).all(tokens, tokens.size());
      for (const WeightType type : {WeightType::kBF16, WeightType::kI8, WeightType::kI4}) {
        const auto name = std::string(table.name) + ", " + weight_type_name(type) + ", " +
                          (shape.cell == nullptr ? "attention" : shape.cell);
        Engine1 reference(shape, 1, 256, table, CacheType::kF32, type);
        const auto want = reference.all(tokens, tokens.size());
        CHECK(!same_bits(want, before)) << name << ": the precision changes nothing";
        before = want;
        for (const int threads : {1, 2, 3}) {
          for (const int max_rows : {1, 5, 33}) {
            Engine1 other(shape, threads, max_rows, table, CacheType::kF32, type);
            CHECK(same_bits(other.all(tokens, tokens.size()), want))
                << name << ", threads " << threads << ", chunks of " << max_rows;
          }
          Engine1 other(shape, threads, 256, table, CacheType::kF32, type);
          CHECK(same_bits(other.all(tokens, 1), want)) << name << ", one token a call";
        }
      }
    });
}

// More keys than a segment: threads share the segments of a row that is alone, and do not where
// there are many rows or one thread. For every type of cache.
KVIK_TEST(rows_bitwise_over_segments) {
  const std::size_t prompt = 1100, extra = 3;
  const auto tokens = random_tokens(static_cast<std::int64_t>(prompt + extra), 4);
  const TinyShape kShapes[] = {
      {.context = 1200, .layers = 1, .heads = 8},
      {.context = 1200, .layers = 1, .heads = 8, .kv_heads = 1, .window = 1050, .alibi = true}};
  for (const auto* table : kernels::available_tables()) {
    for (const TinyShape& shape : kShapes) {
      std::vector<float> before;
      for (const CacheType cache : {CacheType::kF32, CacheType::kBF16, CacheType::kI8}) {
        Engine1 reference(shape, 1, 256, *table, cache);
        const auto vocab = static_cast<std::size_t>(reference.vocab());
        const auto want = reference.all(tokens, tokens.size());
        CHECK(!same_bits(want, before)) << "the type of the cache changes nothing";
        before = want;
        for (const int threads : {2, 3}) {
          Engine1 other(shape, threads, 64, *table, cache);
          // Beside a short sequence, whose keys are less than a segment.
          const auto state = other.decoder.new_state(), brief = other.decoder.new_state();
          const auto head = std::span(tokens).first(prompt);
          other.forward({{state.get(), head, Logits::kNone}});
          other.forward({{brief.get(), head.first(70), Logits::kNone}});
          for (std::size_t i = 0; i < extra; ++i) {
            const auto next = std::span(tokens).subspan(prompt + i, 1);
            const auto after = std::span(tokens).subspan(70 + i, 1);
            const auto got = other.forward(
                {{brief.get(), after, Logits::kLast}, {state.get(), next, Logits::kLast}});
            const auto row = [&](std::size_t r) {
              return std::span(want).subspan(r * vocab, vocab);
            };
            CHECK(same_bits(std::span(got).first(vocab), row(70 + i)))
                << table->name << ", threads " << threads << ", the short one, token " << i;
            CHECK(same_bits(std::span(got).subspan(vocab), row(prompt + i)))
                << table->name << ", threads " << threads << ", " << cache_type_name(cache)
                << " cache, token " << i;
          }
        }
      }
    }
  }
}

KVIK_TEST(rows_bitwise_over_batches) {
  for (const TinyShape& shape : shapes()) {
    for (const std::size_t batch : {1, 2, 7}) {
      Engine1 engine(shape, 2, 64);
      std::vector<std::vector<std::int64_t>> prompts;
      std::vector<std::unique_ptr<SequenceState>> states;
      std::vector<DecodeStep> steps;
      for (std::size_t i = 0; i < batch; ++i) {
        prompts.push_back(random_tokens(static_cast<std::int64_t>(3 + 23 * i % 70), i));
        states.push_back(engine.decoder.new_state());
      }
      for (std::size_t i = 0; i < batch; ++i) {
        steps.push_back({states[i].get(), prompts[i], Logits::kLast});
      }
      const auto prefill = engine.forward(steps);
      const std::int64_t next = 17;
      for (DecodeStep& step : steps) step.tokens = {&next, 1};
      const auto decode = engine.forward(steps);
      const auto vocab = static_cast<std::size_t>(engine.vocab());
      for (std::size_t i = 0; i < batch; ++i) {
        auto tokens = prompts[i];
        tokens.push_back(next);
        const auto alone = Engine1(shape, 1, 256).all(tokens, tokens.size());
        const auto row = [&](std::size_t r) { return std::span(alone).subspan(r * vocab, vocab); };
        CHECK(same_bits(std::span(prefill).subspan(i * vocab, vocab), row(prompts[i].size() - 1)))
            << "prefill, sequence " << i << " of " << batch;
        CHECK(same_bits(std::span(decode).subspan(i * vocab, vocab), row(prompts[i].size())))
            << "decode, sequence " << i << " of " << batch;
      }
    }
  }
}

// A perturbed weight, token or position must show: the comparisons above can fail.
KVIK_TEST(rows_depend_on_every_earlier_token) {
  Engine1 engine({}, 1, 64);
  auto tokens = random_tokens(90, 5);
  const auto want = engine.all(tokens, tokens.size());
  for (const std::size_t at : {0, 1, 63, 64, 88, 89}) {
    auto other = tokens;
    other[at] = (other[at] + 1) % 61;
    const auto got = engine.all(other, other.size());
    const auto vocab = static_cast<std::size_t>(engine.vocab());
    CHECK(same_bits(std::span(got).first(at * vocab), std::span(want).first(at * vocab)))
        << "rows before " << at << " changed";
    CHECK(!same_bits(std::span(got).last(vocab), std::span(want).last(vocab)))
        << "the last row does not depend on token " << at;
  }
}

KVIK_TEST(window_hides_old_tokens) {
  TinyShape shape{.layers = 1, .window = 20};
  Engine1 engine(shape, 1, 64);
  auto tokens = random_tokens(90, 6);
  const auto want = engine.all(tokens, tokens.size());
  const auto vocab = static_cast<std::size_t>(engine.vocab());
  tokens[69] = (tokens[69] + 1) % 61;  // 20 before the last: just outside
  const auto outside = engine.all(tokens, 90);
  CHECK(same_bits(std::span(outside).last(vocab), std::span(want).last(vocab)));
  tokens[70] = (tokens[70] + 1) % 61;  // just inside
  const auto inside = engine.all(tokens, 90);
  CHECK(!same_bits(std::span(inside).last(vocab), std::span(want).last(vocab)));
}

KVIK_TEST(forks_and_truncation_change_nothing) {
  for (const TinyShape& shape :
       {TinyShape{}, TinyShape{.cell = "LSTM"}, TinyShape{.cell = "GRU", .both = true}}) {
    Engine1 engine(shape, 2, 64);
    const auto tokens = random_tokens(120, 8);
    const auto want = engine.all(tokens, tokens.size());
    const auto vocab = static_cast<std::size_t>(engine.vocab());
    const auto state = engine.decoder.new_state();
    engine.forward({{state.get(), std::span(tokens).first(100), Logits::kNone}});
    const auto fork = state->fork();
    const auto other = random_tokens(30, 9);
    engine.forward({{state.get(), other, Logits::kNone}});
    const auto tail = std::span(tokens).subspan(100);
    CHECK(same_bits(engine.forward({{fork.get(), tail, Logits::kAll}}),
                    std::span(want).last(20 * vocab)));
    // To a block's first position, its last, and the beginning.
    for (const std::int64_t length : {100, 64, 63, 65, 30, 1, 0}) {
      state->truncate(length);
      const auto rest = std::span(tokens).subspan(static_cast<std::size_t>(length));
      CHECK(same_bits(engine.forward({{state.get(), rest, Logits::kAll}}),
                      std::span(want).last(rest.size() * vocab)))
          << "cut to " << length;
    }
  }
}

// The states of recurrent layers are float32 whatever the cache holds.
KVIK_TEST(states_are_not_rounded) {
  const auto tokens = random_tokens(90, 10);
  for (const char* cell : {"LSTM", "RNN"}) {
    const TinyShape shape{.cell = cell};
    Engine1 plain(shape, 1, 64);
    const auto want = plain.all(tokens, 1);
    for (const CacheType cache : {CacheType::kBF16, CacheType::kI8}) {
      Engine1 other(shape, 1, 64, kernels::active_table(), cache);
      CHECK(same_bits(other.all(tokens, 1), want)) << cell << ", " << cache_type_name(cache);
      CHECK_EQ(other.decoder.program().kv_layout().page_bytes(),
               plain.decoder.program().kv_layout().page_bytes());
    }
  }
}

// A position beyond the table makes the run fail halfway; the sequence is as it was.
KVIK_TEST(an_error_leaves_the_sequence_as_it_was) {
  Engine1 engine({.context = 100}, 2, 16);
  const auto tokens = random_tokens(60, 10);
  const auto want = engine.all(tokens, tokens.size());
  const auto vocab = static_cast<std::size_t>(engine.vocab());
  const auto state = engine.decoder.new_state();
  engine.forward({{state.get(), std::span(tokens).first(40), Logits::kNone}});
  const auto too_many = random_tokens(80, 11);
  const std::string text =
      kvik::test::thrown([&] { engine.forward({{state.get(), too_many, Logits::kAll}}); });
  CHECK(text.find("Gather") != std::string::npos) << text;
  CHECK_EQ(state->length(), 40);
  int calls = 0;
  std::vector<float> out(static_cast<std::size_t>(engine.vocab()));
  const DecodeStep step{state.get(), std::span(too_many).first(50), Logits::kLast};
  CHECK(!kvik::test::thrown([&] {
           engine.decoder.forward(std::span(&step, 1), out.data(), [&] { return ++calls == 2; });
         }).empty());
  CHECK_EQ(state->length(), 40);
  CHECK(same_bits(engine.forward({{state.get(), std::span(tokens).subspan(40), Logits::kAll}}),
                  std::span(want).last(20 * vocab)));
}

KVIK_TEST(the_tail_and_the_logits_buffer) {
  Engine1 engine({}, 1, 64);
  const RowPlan& plan = engine.decoder.program().plan();
  // After the last attention: product, residual, norm, MLP (2 products, activation), residual,
  // norm, logits, view.
  CHECK_EQ(plan.tail.size(), std::size_t{10});
  const auto stored = std::count_if(plan.slots.begin(), plan.slots.end(), [](const Slot& slot) {
    return slot.storage == Storage::kLogits;
  });
  CHECK_EQ(stored, 1);
}

// Queries, keys and values of one input are one step, with the numbers of three.
KVIK_TEST(products_of_the_same_rows_are_joined) {
  const auto tokens = random_tokens(30, 11);
  Engine1 apart({}, 2, 64), joined({.linear = true}, 2, 64);
  CHECK_EQ(apart.decoder.program().plan().body.size() - joined.decoder.program().plan().body.size(),
           std::size_t{4});  // two less in each of two layers
  CHECK(same_bits(apart.all(tokens, 7), joined.all(tokens, 7)));
}

KVIK_TEST(columns_are_views_where_all_readers_take_them) {
  const auto views = [](const TinyShape& shape) {
    Engine1 engine(shape, 1, 64);
    const RowPlan& plan = engine.decoder.program().plan();
    return std::count_if(plan.slots.begin(), plan.slots.end(),
                         [](const Slot& slot) { return slot.row_stride != 0; });
  };
  CHECK_EQ(views({.split = true}), 6);  // q, k and v of two layers
  CHECK_EQ(views({.split = true, .swap = true}), 0);
}

}  // namespace

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
