// The public interface on a small model: forward(), sequences, generation, and what must raise.
#include "kvik/kvik.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "cpp/check.h"
#include "runtime/tiny_onnx.h"

namespace {

using namespace kvik;
using kvik::test::thrown;
using kvik::test::tiny_onnx;
using kvik::test::TinyModel;
using Tokens = std::vector<std::int64_t>;

Model load(const LoadOptions& options = {.threads = 2}, const TinyModel& shape = {}) {
  return Model::from_bytes(tiny_onnx(shape), options);
}

std::vector<float> run(const Model& model, std::vector<Step> steps) {
  const auto rows = static_cast<std::size_t>(Model::logits_rows(steps));
  std::vector<float> logits(rows * static_cast<std::size_t>(model.info().vocab_size));
  model.forward(steps, logits);
  return logits;
}

Tokens random_tokens(std::int64_t count, std::uint64_t stream) {
  kvik::test::Random random(stream);
  Tokens tokens;
  for (std::int64_t i = 0; i < count; ++i) tokens.push_back(random.integer(0, 39));
  return tokens;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

KVIK_TEST(info_and_explanation) {
  const Model model = load();
  const ModelInfo& info = model.info();
  CHECK(info.incremental) << model.explain().front();
  CHECK_EQ(info.vocab_size, 40);
  CHECK_EQ(info.token_limit, 40);
  CHECK_EQ(info.context_length, 70);
  CHECK_EQ(info.threads, 2);
  CHECK_EQ(info.state_bytes_per_position, 2 * 16 * 4);
  CHECK_EQ(info.parameters, 40 * 16 + 70 * 16 + 3 * 16 * 16 + 16 * 40);
  CHECK_EQ(model.metadata().at("kvik.note"), "kept");
  CHECK(contains(model.dump(GraphStage::kImported), "Range"));
  CHECK(contains(model.dump(GraphStage::kRows), "RowAttention"));
  CHECK(!model.nodes(GraphStage::kOptimized).empty());
}

KVIK_TEST(rows_agree_with_recomputation) {
  const Model rows = load();
  const Model whole = load({.threads = 1, .incremental = false});
  CHECK(!whole.info().incremental);
  CHECK(!whole.explain().empty());
  const Tokens tokens = random_tokens(70, 1);
  Sequence a = rows.new_sequence();
  Sequence b = whole.new_sequence();
  const auto got = run(rows, {{&a, tokens, Logits::kAll}});
  const auto want = run(whole, {{&b, tokens, Logits::kAll}});
  float worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i) worst = std::max(worst, std::abs(got[i] - want[i]));
  CHECK(worst < 1e-4F) << worst;
  CHECK(worst > 0 || got == want);
}

KVIK_TEST(a_model_that_is_not_causal_generates_by_recomputation) {
  const Model model = load({.threads = 1}, {.causal = false});
  CHECK(!model.info().incremental);
  CHECK(contains(model.explain().front(), "not causal")) << model.explain().front();
  const GenerateRequest request{.prompt = {1, 2, 3}, .max_new_tokens = 5};
  CHECK_EQ(generate(model, request).tokens.size(), std::size_t{5});
  // As rows of the whole sequence, and as the graph stands.
  const Model graph = load({.threads = 1, .incremental = false}, {.causal = false});
  CHECK_EQ(graph.dump(GraphStage::kRows), "");
  const Tokens tokens = random_tokens(67, 6);
  Sequence a = model.new_sequence(), b = graph.new_sequence();
  const auto got = run(model, {{&a, tokens, Logits::kAll}});
  const auto want = run(graph, {{&b, tokens, Logits::kAll}});
  float worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i) worst = std::max(worst, std::abs(got[i] - want[i]));
  CHECK(worst < 1e-4F) << worst;
}

std::vector<float> encode(const Model& model, std::span<const EncoderInput> inputs) {
  std::vector<float> out(
      static_cast<std::size_t>(model.encoded_rows(inputs) * model.info().encoded_features()));
  model.encode(inputs, out);
  return out;
}

KVIK_TEST(a_text_is_encoded_by_itself_whatever_shares_the_call) {
  const Model model = load({.threads = 2, .max_rows = 64}, {.causal = false});
  CHECK_EQ(model.info().encoded.size(), std::size_t{1});
  CHECK(model.info().encoded_per_token);
  CHECK_EQ(model.info().encoded_features(), 40);
  std::vector<Tokens> texts;  // of unequal lengths, and one longer than max_rows
  for (const int length : {1, 30, 48, 70, 7}) texts.push_back(random_tokens(length, length));
  std::vector<EncoderInput> inputs;
  for (const Tokens& text : texts) inputs.push_back({text, {}});
  const auto together = encode(model, inputs);
  const Model single = load({.threads = 1}, {.causal = false});
  std::vector<float> apart;
  for (const EncoderInput& input : inputs) {
    const auto rows = encode(single, {&input, 1});
    apart.insert(apart.end(), rows.begin(), rows.end());
  }
  CHECK(together == apart);
  // The first token reads the last: nothing here is causal.
  Tokens other = texts[1];
  other.back() = (other.back() + 1) % 40;
  const auto changed = encode(single, std::array{EncoderInput{other, {}}});
  CHECK(!std::equal(changed.begin(), changed.begin() + 40, together.begin() + 40));
}

KVIK_TEST(encode_refuses) {
  const Model model = load({.threads = 1}, {.causal = false}), causal = load();
  const Tokens tokens = random_tokens(5, 7), none, wrong{1, 40}, types{0, 0, 0};
  const Tokens longest = random_tokens(71, 8);
  std::vector<float> out(5 * 40);
  const auto refused = [&](const Model& m, EncoderInput input, const char* words) {
    try {
      m.encode({input}, out);
      CHECK(false) << words;
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kInvalidArgument);
      CHECK(contains(error.what(), words)) << error.what();
    }
  };
  refused(causal, {tokens, {}}, "does not encode");
  refused(model, {none, {}}, "text 0: no tokens");
  refused(model, {wrong, {}}, "token id 40; the model accepts 0 to 39");
  refused(model, {tokens, types}, "token types, which the model does not read");
  refused(model, {longest, {}}, "71 tokens exceed the model's context of 70");
  refused(model, {std::span(tokens).first(4), {}}, "holds 200 floats");
  model.encode({{tokens, {}}}, out);
  CHECK_EQ(model.encoded_rows({{tokens, {}}, {longest, {}}}), 76);
}

KVIK_TEST(logits_modes_and_unequal_lengths) {
  const Model model = load();
  const Tokens one = random_tokens(9, 2), two = random_tokens(33, 3), three = random_tokens(1, 4);
  Sequence a = model.new_sequence(), b = model.new_sequence(), c = model.new_sequence();
  const auto got = run(model, {{&a, one, Logits::kAll}, {&b, two, Logits::kNone}, {&c, three}});
  CHECK_EQ(got.size(), std::size_t{10 * 40});
  CHECK_EQ(b.length(), 33);
  Sequence d = model.new_sequence(), e = model.new_sequence();
  const auto first = run(model, {{&d, one, Logits::kAll}});
  const auto last = run(model, {{&e, three}});
  CHECK(std::equal(first.begin(), first.end(), got.begin()));
  CHECK(std::equal(last.begin(), last.end(), got.begin() + 9 * 40));
}

KVIK_TEST(forward_refuses_and_changes_nothing) {
  const Model model = load(), other = load();
  Sequence a = model.new_sequence(), foreign = other.new_sequence();
  const Tokens start = random_tokens(60, 5);
  run(model, {{&a, start, Logits::kNone}});
  const Tokens next{7};
  const auto message = [&](std::vector<Step> steps, std::size_t floats) {
    std::vector<float> logits(floats);
    const std::string text = thrown([&] { model.forward(steps, logits); });
    CHECK_EQ(a.length(), 60) << text;
    CHECK(!text.empty() && !contains(text, "\n")) << text;
    return text;
  };
  Sequence empty;
  CHECK(contains(message({{&a, Tokens{40}}}, 40), "token id 40; the model accepts 0 to 39"));
  CHECK(contains(message({{&a, Tokens{3, -1}}}, 40), "token id -1"));
  CHECK(contains(message({{&a, Tokens(11, 1)}}, 40), "context of 70"));
  CHECK(contains(message({{&a, Tokens()}}, 40), "no tokens"));
  CHECK(contains(message({{&a, next}}, 39), "39 floats"));
  CHECK(contains(message({{&a, next}, {&a, next}}, 80), "occurs twice"));
  CHECK(contains(message({{&a, next}, {&foreign, next}}, 80), "another model"));
  CHECK(contains(message({{&a, next}, {&empty, next}}, 80), "no sequence"));
  CHECK(contains(message({{&a, next}, {nullptr, next}}, 80), "no sequence"));
  // And afterwards all is well.
  Sequence b = model.new_sequence();
  Tokens all = start;
  all.push_back(7);
  CHECK(run(model, {{&a, next}}) == run(model, {{&b, all}}));
}

KVIK_TEST(sequences_fork_truncate_move_and_outlive_their_model) {
  Sequence survivor;
  const Tokens tokens = random_tokens(50, 6);
  std::vector<float> want;
  {
    const Model model = load();
    Sequence a = model.new_sequence();
    run(model, {{&a, tokens, Logits::kNone}});
    Sequence b = a.fork();
    want = run(model, {{&b, Tokens{3}}});
    a.truncate(20);
    run(model, {{&a, std::span(tokens).subspan(20), Logits::kNone}});
    CHECK(run(model, {{&a, Tokens{3}}}) == want);
    CHECK(!thrown([&] { a.truncate(52); }).empty());
    CHECK(!thrown([&] { a.truncate(-1); }).empty());
    CHECK_EQ(a.length(), 51);
    CHECK(a.state_bytes() > 0);
    survivor = std::move(a);
    CHECK(!a.valid());
    CHECK(!thrown([&] { (void)a.fork(); }).empty());
  }
  survivor.truncate(10);
  CHECK_EQ(survivor.fork().length(), 10);
}

KVIK_TEST(two_threads_share_a_model) {
  const Model model = load();
  const auto work = [&](std::uint64_t stream) {
    Sequence s = model.new_sequence();
    std::vector<float> out;
    for (const std::int64_t token : random_tokens(60, stream)) {
      const auto logits = run(model, {{&s, {&token, 1}}});
      out.insert(out.end(), logits.begin(), logits.end());
    }
    return out;
  };
  const auto first = work(1), second = work(2);
  std::vector<float> got_first, got_second;
  std::thread thread([&] { got_first = work(1); });
  got_second = work(2);
  thread.join();
  CHECK(got_first == first && got_second == second);
}

GenerateRequest sampled(std::uint64_t seed) {
  GenerateRequest request{.prompt = random_tokens(static_cast<std::int64_t>(1 + seed % 9), seed),
                          .max_new_tokens = static_cast<std::int64_t>(5 + seed)};
  request.sampler = {.temperature = 0.9, .top_k = 20, .repetition_penalty = 1.1, .seed = seed};
  return request;
}

KVIK_TEST(a_request_does_not_depend_on_its_neighbours) {
  const Model model = load();
  std::vector<GenerateRequest> requests;
  for (std::uint64_t seed = 0; seed < 7; ++seed) requests.push_back(sampled(seed));
  const auto together = generate(model, requests);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CHECK(generate(model, requests[i]).tokens == together[i].tokens) << "request " << i;
    CHECK_EQ(together[i].tokens.size(), 5 + i);
    CHECK_EQ(std::string(finish_reason_name(together[i].reason)), "length");
  }
}

KVIK_TEST(ends_of_a_request) {
  const Model model = load();
  const GenerateRequest plain{.prompt = {1, 2, 3}, .max_new_tokens = 20};
  const Tokens all = generate(model, plain).tokens;
  GenerateRequest stopping = plain;
  stopping.stop_ids = {all[4]};
  const auto at = std::find(all.begin(), all.end(), all[4]) - all.begin();
  const GenerateResult stopped = generate(model, stopping);
  CHECK(stopped.reason == FinishReason::kStopId);
  CHECK(stopped.tokens == Tokens(all.begin(), all.begin() + at));

  const GenerateResult full = generate(model, {.prompt = Tokens(66, 1), .max_new_tokens = 100});
  CHECK(full.reason == FinishReason::kContext);
  CHECK_EQ(full.tokens.size(), std::size_t{5});  // the last one is drawn and never fed

  std::size_t events = 0;
  const GenerateResult cut =
      generate(model, plain, [&](const GenerateEvent&) { return ++events == 3; });
  CHECK(cut.reason == FinishReason::kStopped);
  CHECK(cut.tokens == Tokens(all.begin(), all.begin() + 3));
  CHECK(generate(model, {.prompt = {1}, .max_new_tokens = 0}).tokens.empty());
}

KVIK_TEST(cancelled_generation_goes_on_where_it_was) {
  const Model model = load({.threads = 1, .max_rows = 8});
  const GenerateRequest request{.prompt = random_tokens(30, 8), .max_new_tokens = 10};
  const Tokens want = generate(model, request).tokens;
  for (int patience = 1; patience < 12; ++patience) {
    Generator generator(model, {request});
    int asked = 0;
    const CancelCheck cancelled = [&] { return ++asked == patience; };
    int cancels = 0;
    while (!generator.done()) {
      try {
        generator.step(cancelled);
      } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::kCancelled) << error.what();
        ++cancels;
      }
    }
    CHECK_EQ(cancels, 1);
    CHECK(generator.results()[0].tokens == want) << "cancelled at question " << patience;
  }
}

KVIK_TEST(requests_are_checked) {
  const Model model = load();
  const auto message = [&](const GenerateRequest& request) {
    return thrown([&] { generate(model, request); });
  };
  CHECK(contains(message({.prompt = {}}), "prompt is empty"));
  CHECK(contains(message({.prompt = {40}}), "token id 40"));
  CHECK(contains(message({.prompt = Tokens(71, 1)}), "71 tokens"));
  CHECK(contains(message({.prompt = {1}, .max_new_tokens = -1}), "max_new_tokens"));
  CHECK(contains(message({.prompt = {1}, .stop_ids = {40}}), "stop id 40"));
  CHECK(contains(message({.prompt = {1}, .sampler = {.top_p = 2}}), "top_p"));
  const std::vector<GenerateRequest> two{{.prompt = {1}}, {.prompt = {99}}};
  CHECK(contains(thrown([&] { generate(model, two); }), "request 1: token id 99"));
  const Model whole = load({.threads = 1, .incremental = false});
  CHECK_EQ(whole.info().token_limit, 0);  // not known
  CHECK_EQ(thrown([&] { generate(whole, {.prompt = {-1}}); }),
           "token id -1 in the prompt; the model accepts 0 to 2^63-1");
}

KVIK_TEST(metadata_is_checked) {
  const auto message = [](const char* key, const char* value) {
    return thrown([&] { load({.threads = 1}, {.metadata = {{key, value}}}); });
  };
  const std::string expected = "; expected a whole number from 1 on";
  for (const std::string value : {"abc", "-5", "0", "", "12 ", "1e3", "99999999999999999999"}) {
    for (const std::string key : {"kvik.context_length", "kvik.format"}) {
      CHECK_EQ(message(key.c_str(), value.c_str()),
               "the file's metadata " + key + " is '" + value + "'" + expected);
    }
  }
  CHECK_EQ(message("kvik.format", "999"),
           "the file's metadata kvik.format is 999; this version of Kvik reads 1 and may be too "
           "old");
  CHECK_EQ(message("kvik.format", "1"), "");
  const Model model = load({.threads = 1}, {.metadata = {{"kvik.context_length", "33"}}});
  CHECK_EQ(model.info().context_length, 33);
}

KVIK_TEST(a_sequence_beyond_the_position_table_is_named) {
  const Model whole = load({.threads = 1, .incremental = false});
  Sequence sequence = whole.new_sequence();
  const std::string message = thrown([&] { run(whole, {{&sequence, random_tokens(71, 3)}}); });
  CHECK(contains(message, "; the sequence has 71 tokens, perhaps more than the model allows"))
      << message;
  CHECK_EQ(sequence.length(), 0);
}

KVIK_TEST(the_size_of_the_vocabulary_is_not_found_by_running) {
  // An endless loop before the projection hides every shape from inference.
  CHECK(contains(thrown([] { load({.threads = 1}, {.trips = INT64_MAX, .declared = 0}); }),
                 "the size of the last dimension of its output 'logits'"));
  const Model model = load({.threads = 1}, {.trips = INT64_MAX});
  CHECK_EQ(model.info().vocab_size, 40);
  CHECK(!model.info().incremental);
  Sequence sequence = model.new_sequence();
  const Tokens tokens{1, 2};
  std::vector<float> logits(40);
  int asked = 0;
  CHECK(contains(thrown([&] {
                   model.forward({{&sequence, tokens}}, logits, [&] { return ++asked == 1000; });
                 }),
                 "cancelled before"));
  // What the file claims is compared with what came out.
  const Model wrong = load({.threads = 1}, {.trips = 1, .declared = 41});
  Sequence other = wrong.new_sequence();
  CHECK(contains(thrown([&] { run(wrong, {{&other, tokens}}); }), "expected a float32 row of 41"));
  const Model right = load({.threads = 1}, {.trips = 1});
  Sequence third = right.new_sequence();
  CHECK_EQ(run(right, {{&third, tokens}}).size(), std::size_t{40});
}

KVIK_TEST(half_precision_logits_are_refused_with_what_is_expected) {
  CHECK(contains(thrown([] { load({.threads = 1}, {.half = true}); }),
                 "the output 'logits' is float16; generation expects float32 logits"));
}

KVIK_TEST(load_options_are_checked) {
  CHECK(contains(thrown([] { load({.threads = -1}); }), "threads is -1"));
  CHECK(contains(thrown([] { load({.max_rows = 0}); }), "max_rows is 0"));
  CHECK(!thrown([] { Model::load("/does/not/exist.onnx"); }).empty());
  const auto bytes = tiny_onnx({});
  for (const std::size_t cut : {std::size_t{0}, bytes.size() / 2, bytes.size() - 30}) {
    CHECK(!thrown([&] { Model::from_bytes(std::span(bytes).first(cut)); }).empty()) << cut;
  }
}

KVIK_TEST(the_optimiser_changes_no_number_much) {
  const Tokens tokens = random_tokens(40, 9);
  const Model fused = load(), plain = load({.threads = 2, .optimize = false});
  CHECK(plain.info().incremental) << plain.explain().front();
  Sequence a = fused.new_sequence(), b = plain.new_sequence();
  const auto x = run(fused, {{&a, tokens, Logits::kAll}});
  const auto y = run(plain, {{&b, tokens, Logits::kAll}});
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(std::abs(x[i] - y[i]) < 1e-4F) << i;
}

KVIK_TEST(sessions_run_the_graph_as_it_stands) {
  const auto bytes = tiny_onnx({});
  const Session session =
      Session::from_bytes(bytes, {.threads = 1, .extra_outputs = {"mixed", "x"}});
  CHECK_EQ(session.inputs().size(), std::size_t{1});
  CHECK_EQ(session.inputs()[0].shape[1].symbol, "sequence");
  CHECK_EQ(session.outputs().size(), std::size_t{3});
  const Tokens ids{1, 2, 3, 4, 5, 6};
  const std::int64_t dims[] = {2, 3};
  const Feed feed{"ids", {DType::kI64, dims, ids.data()}};
  const std::vector<std::string> names{"x", "logits"};
  const auto out = session.run(std::span(&feed, 1), names);
  CHECK_EQ(out[0].dims.back(), 16);
  CHECK((out[1].dims == std::vector<std::int64_t>{2, 3, 40}));
  CHECK_EQ(out[1].elements(), 240);
  const auto refused = [&](const Feed& bad) {
    return thrown([&] { session.run(std::span(&bad, 1)); });
  };
  CHECK(contains(refused({"idz", {DType::kI64, dims, ids.data()}}), "no input 'idz'"));
  CHECK(contains(refused({"ids", {DType::kF32, dims, ids.data()}}), "float32"));
  const std::int64_t flat[] = {6};
  CHECK(!refused({"ids", {DType::kI64, flat, ids.data()}}).empty());
  CHECK(contains(thrown([&] { session.run({}); }), "'ids' was not given"));
  const std::vector<std::string> wrong{"nothing"};
  CHECK(contains(thrown([&] { session.run(std::span(&feed, 1), wrong); }), "no output 'nothing'"));
  CHECK(contains(thrown([&] { session.run(std::span(&feed, 1), {}, [] { return true; }); }),
                 "cancelled"));
  CHECK(session.run(std::span(&feed, 1), names)[1].as<float>()[0] == out[1].as<float>()[0]);
}

}  // namespace

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
