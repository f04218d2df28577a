// Profiles: nothing is recorded unless asked for, every call is counted, sums are plausible, and
// the numbers of the model stay the same.
#include "cpp/check.h"
#include "runtime/tiny_onnx.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "kvik/kvik.h"

namespace {

using namespace kvik;
using kvik::test::tiny_onnx;
using kvik::test::TinyModel;

constexpr std::int64_t kVocab = 40, kWidth = 16;

Model load(const LoadOptions& options, const TinyModel& shape = {}) {
  return Model::from_bytes(tiny_onnx(shape), options);
}

// The prompt, then `more` tokens one by one; the last logits.
std::vector<float> run(const Model& model, std::int64_t prompt, int more) {
  Sequence sequence = model.new_sequence();
  std::vector<float> logits(static_cast<std::size_t>(model.info().vocab_size));
  const std::vector<std::int64_t> tokens(static_cast<std::size_t>(prompt), 3);
  model.forward({{&sequence, tokens}}, logits);
  const std::int64_t next = 7;
  for (int i = 0; i < more; ++i) model.forward({{&sequence, {&next, 1}}}, logits);
  return logits;
}

// The only operator of that name and shape.
const OpProfile& find(const Profile& profile, const std::string& op, const std::string& shape) {
  static const OpProfile none;
  const auto found = std::find_if(profile.ops.begin(), profile.ops.end(), [&](const OpProfile& o) {
    return o.op == op && o.shape == shape;
  });
  CHECK(found != profile.ops.end()) << op << " " << shape;
  return found == profile.ops.end() ? none : *found;
}

std::int64_t calls_of(const Profile& profile, const std::string& op) {
  std::int64_t calls = 0;
  for (const OpProfile& o : profile.ops) calls += o.op == op ? o.calls : 0;
  return calls;
}

void check_sums(const Profile& profile, double elapsed) {
  CHECK(profile.seconds > 0 && profile.seconds <= elapsed) << profile.seconds << " of " << elapsed;
  CHECK(profile.overhead_seconds() >= 0) << profile.overhead_seconds();
  for (const OpProfile& op : profile.ops) CHECK(op.calls > 0 && op.seconds >= 0) << op.op;
}

KVIK_TEST(nothing_is_recorded_unless_asked_for) {
  for (const bool incremental : {true, false}) {
    const Model model = load({.threads = 1, .incremental = incremental});
    run(model, 5, 2);
    const Profile before = model.stop_profile();
    CHECK_EQ(before.calls, 0);
    CHECK(before.ops.empty());
    model.start_profile();
    run(model, 5, 2);
    CHECK_EQ(model.stop_profile().calls, 3);
    run(model, 5, 2);
    CHECK_EQ(model.stop_profile().calls, 0);
  }
}

KVIK_TEST(calls_bytes_and_operations_of_rows) {
  const Model model = load({.threads = 2});
  const std::vector<float> want = run(model, 9, 4);
  const auto start = std::chrono::steady_clock::now();
  model.start_profile();
  CHECK(run(model, 9, 4) == want);
  const Profile profile = model.stop_profile();
  check_sums(profile,
             std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  CHECK_EQ(profile.calls, 5);

  // One row of the last token goes through the projection, in every call.
  const OpProfile& head = find(profile, "kvik.Linear", "16 x 40");
  CHECK_EQ(head.calls, 5);
  CHECK_EQ(head.name, "logits");
  CHECK_EQ(head.precision, "f32");
  CHECK_EQ(head.operations, 5.0 * 2 * kWidth * kVocab);
  CHECK(head.bytes >= 5.0 * kWidth * kVocab * 4) << head.bytes;

  // Keys and values of all positions so far: 9, then 10 to 13.
  const TinyModel shape;
  const OpProfile& attention =
      find(profile, "kvik.RowAttention",
           std::to_string(shape.heads) + " heads x " + std::to_string(kWidth / shape.heads));
  CHECK_EQ(attention.calls, 5);
  CHECK_EQ(attention.bytes, (9 + 10 + 11 + 12 + 13) * 2.0 * kWidth * 4);
  CHECK_EQ(attention.operations, 2.0 * (45 + 10 + 11 + 12 + 13) * 2 * kWidth);
}

KVIK_TEST(a_long_prompt_runs_its_operators_once_a_chunk) {
  const Model model = load({.threads = 1, .max_rows = 8});
  model.start_profile();
  run(model, 20, 0);
  const Profile profile = model.stop_profile();
  CHECK_EQ(profile.calls, 1);
  CHECK_EQ(calls_of(profile, "kvik.RowAttention"), 3);
  CHECK_EQ(find(profile, "kvik.Linear", "16 x 40").calls,
           1);  // only the last chunk has wanted rows
}

KVIK_TEST(recomputation_is_profiled_too) {
  const Model model = load({.threads = 1, .incremental = false});
  model.start_profile();
  run(model, 9, 2);
  const Profile profile = model.stop_profile();
  check_sums(profile, 1e9);
  CHECK_EQ(profile.calls, 3);
  CHECK_EQ(calls_of(profile, "Attention"), 3);
  const OpProfile& head = find(profile, "kvik.Linear", "16 x 40");
  CHECK_EQ(head.operations, 2.0 * (9 + 10 + 11) * kWidth * kVocab);
}

KVIK_TEST(starting_again_forgets) {
  const Model model = load({.threads = 1});
  model.start_profile();
  run(model, 4, 3);
  model.start_profile();
  run(model, 4, 0);
  CHECK_EQ(model.stop_profile().calls, 1);
}

KVIK_TEST(a_call_that_fails_is_not_counted) {
  const Model model = load({.threads = 1});
  model.start_profile();
  Sequence sequence = model.new_sequence();
  std::vector<float> logits(kVocab);
  const std::int64_t wrong = 1000;
  CHECK(!kvik::test::thrown([&] { model.forward({{&sequence, {&wrong, 1}}}, logits); }).empty());
  const Profile profile = model.stop_profile();
  CHECK_EQ(profile.calls, 0);
  CHECK(profile.ops.empty());
}

KVIK_TEST(sessions_are_profiled) {
  const Session session = Session::from_bytes(tiny_onnx({.trips = 2}), {.threads = 1});
  const std::int64_t ids[] = {1, 2, 3}, dims[] = {1, 3};
  const Feed feeds[] = {{"ids", {DType::kI64, dims, ids}}};
  session.run(feeds);
  CHECK(session.stop_profile().ops.empty());
  session.start_profile();
  for (int i = 0; i < 3; ++i) session.run(feeds);
  const Profile profile = session.stop_profile();
  check_sums(profile, 1e9);
  CHECK_EQ(profile.calls, 3);
  CHECK_EQ(calls_of(profile, "Loop"), 3);
  CHECK_EQ(calls_of(profile, "Neg"), 0);  // in the loop's body: part of its time
  CHECK_EQ(calls_of(profile, "Attention"), 3);
  session.run(feeds);
  CHECK_EQ(session.stop_profile().calls, 0);
}

}  // namespace

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
