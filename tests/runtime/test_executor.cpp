// The graph executor: errors, budgets, lifetimes, control flow.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpp/check.h"
#include "kvik/error.h"
#include "runtime/one_node.h"

using kvik::Dims;
using kvik::DType;
using kvik::ErrorCode;
using kvik::graph::Graph;
using kvik::graph::kNoValue;
using kvik::graph::ValueId;
using namespace kvik::test;  // NOLINT: the names of this harness

namespace {

// Runs and returns the error, checking its code and that it names the node.
std::string refused(ErrorCode code, const OneNode& node, const std::vector<Given>& inputs) {
  try {
    node.run(inputs);
  } catch (const kvik::Error& error) {
    CHECK(error.code() == code) << ": " << error.what();
    const std::string message = error.what();
    CHECK(message.find(node.op + " node '/node0': ") == 0) << ": " << message;
    return message;
  }
  CHECK(false) << ": " << node.op << " was not refused";
  return "";
}

bool mentions(const std::string& message, const std::string& part) {
  return message.find(part) != std::string::npos;
}

constexpr std::int64_t kHuge = std::int64_t{1} << 40;

struct Engine {
  kvik::ThreadPool pool{2};
  kvik::ops::WeightCache weights;
  kvik::runtime::Engine view{kvik::kernels::active_table(), pool, weights};
};

}  // namespace

KVIK_TEST(results_beyond_the_budget_are_refused) {
  const auto code = ErrorCode::kOutOfMemory;
  refused(code, {.op = "ConstantOfShape"}, [] {
    std::vector<Given> v;
    v.push_back(ints({1}, {kHuge}));
    return v;
  }());
  std::vector<Given> expand;
  expand.push_back(floats({1}, {1.0f}));
  expand.push_back(ints({2}, {kHuge, kHuge}));
  refused(code, {.op = "Expand"}, expand);
  refused(code, {.op = "Tile"}, [] {
    std::vector<Given> v;
    v.push_back(floats({2}, {1.0f, 2.0f}));
    v.push_back(ints({1}, {std::numeric_limits<std::int64_t>::max()}));
    return v;
  }());
  std::vector<Given> range;
  range.push_back(ints({}, {0}));
  range.push_back(ints({}, {std::numeric_limits<std::int64_t>::max()}));
  range.push_back(ints({}, {1}));
  refused(code, {.op = "Range"}, range);
  std::vector<Given> pad;
  pad.push_back(floats({1}, {1.0f}));
  pad.push_back(ints({2}, {kHuge, kHuge}));
  refused(code, {.op = "Pad"}, pad);
  std::vector<Given> one_hot;
  one_hot.push_back(ints({2}, {0, 1}));
  one_hot.push_back(ints({}, {kHuge}));
  one_hot.push_back(floats({2}, {0.0f, 1.0f}));
  refused(code, {.op = "OneHot"}, one_hot);
}

KVIK_TEST(the_budget_counts_what_is_alive) {
  // 40 doublings by Concat(x, x): refused long before memory runs out.
  Graph graph;
  ValueId x = add_input(graph, "x");
  for (int i = 0; i < 40; ++i)
    x = add_node(graph, "Concat", {x, x}, {{"axis", std::int64_t{0}}})[0];
  graph.outputs = {x};
  Engine engine;
  kvik::runtime::ExecutorOptions options;
  options.max_bytes = 1 << 20;
  const kvik::runtime::GraphExecutor executor(graph, engine.view, options);
  const Given given = floats({4}, {1, 2, 3, 4});
  const std::string message = thrown([&] { executor.run({&given.tensor, 1}); });
  CHECK(mentions(message, "budget of 1048576 bytes")) << ": " << message;
}

KVIK_TEST(a_long_chain_needs_few_buffers) {
  Graph graph;
  ValueId x = add_input(graph, "x");
  for (int i = 0; i < 200; ++i) x = add_node(graph, "Neg", {x})[0];
  graph.outputs = {x};
  Engine engine;
  kvik::runtime::ExecutorOptions options;
  options.max_bytes = 3 * 4096 * 4;  // an input, an output and one to spare
  const kvik::runtime::GraphExecutor executor(graph, engine.view, options);
  const Given given = floats({4096}, std::vector<float>(4096, 2.5f));
  const auto results = executor.run({&given.tensor, 1});
  CHECK_EQ(values_of<float>(results[0]).back(), 2.5f);
}

KVIK_TEST(impossible_arguments_are_refused) {
  const auto code = ErrorCode::kInvalidArgument;
  const auto range = [](float delta) {
    std::vector<Given> v;
    v.push_back(floats({}, {0.0f}));
    v.push_back(floats({}, {5.0f}));
    v.push_back(floats({}, {delta}));
    return v;
  };
  CHECK(mentions(refused(code, {.op = "Range"}, range(0.0f)), "delta is 0"));
  refused(code, {.op = "Range"}, range(std::numeric_limits<float>::quiet_NaN()));

  const auto with_ints = [](std::vector<std::vector<std::int64_t>> lists) {
    std::vector<Given> v;
    v.push_back(floats({2, 3}, {1, 2, 3, 4, 5, 6}));
    for (const auto& list : lists)
      v.push_back(ints({static_cast<std::int64_t>(list.size())}, list));
    return v;
  };
  CHECK(mentions(refused(code, {.op = "Slice"}, with_ints({{0}, {1}, {0}, {0}})), "step 0"));
  CHECK(mentions(refused(code, {.op = "Slice"}, with_ints({{0}, {1}, {2}})),
                 "axis 2 is out of range for a tensor of rank 2"));
  CHECK(mentions(refused(code, {.op = "Reshape"}, with_ints({{-1, -1}})),
                 "cannot reshape [2, 3] to [-1, -1]: more than one -1"));
  CHECK(mentions(refused(code, {.op = "Reshape"}, with_ints({{4, -1}})), "cannot be divided"));
  CHECK(mentions(refused(code, {.op = "Reshape"}, with_ints({{7}})), "the input has 6 elements"));
  CHECK(mentions(
      refused(code, {.op = "Split", .attributes = {{"axis", std::int64_t{1}}}, .outputs = 2},
              with_ints({{1, 1}})),
      "split [1, 1] does not divide an axis of 3 into 2 outputs"));
  CHECK(mentions(
      refused(code, {.op = "Gather", .attributes = {{"axis", std::int64_t{1}}}}, with_ints({{3}})),
      "index 3 is out of range for an axis of 3"));
  CHECK(mentions(refused(code, {.op = "Gather"}, with_ints({{-3}})), "index -3 is out of range"));
  CHECK(mentions(
      refused(code, {.op = "Transpose", .attributes = {{"perm", std::vector<std::int64_t>{0, 0}}}},
              with_ints({})),
      "named twice"));
  CHECK(mentions(refused(code, {.op = "Add"}, with_ints({{1}})), "has type"));
  std::vector<Given> division;
  division.push_back(ints({1}, {1}));
  division.push_back(ints({1}, {0}));
  CHECK(mentions(refused(code, {.op = "Div"}, division), "divided by zero"));
  refused(code, {.op = "Mod"}, division);
  std::vector<Given> product;
  product.push_back(floats({2, 3}, {1, 2, 3, 4, 5, 6}));
  product.push_back(floats({2, 3}, {1, 2, 3, 4, 5, 6}));
  CHECK(mentions(refused(code, {.op = "MatMul"}, product),
                 "shapes [2, 3] and [2, 3] do not fit: 3 columns meet 2 rows"));
}

KVIK_TEST(integers_at_their_limits_do_not_trap) {
  const std::int64_t lowest = std::numeric_limits<std::int64_t>::min();
  std::vector<Given> pair;
  pair.push_back(ints({1}, {lowest}));
  pair.push_back(ints({1}, {-1}));
  for (const char* op : {"Div", "Mul"}) {
    CHECK_EQ(values_of<std::int64_t>(OneNode{.op = op}.run(pair)[0])[0], lowest);
  }
  CHECK_EQ(values_of<std::int64_t>(OneNode{.op = "Mod"}.run(pair)[0])[0], 0);
  pair.pop_back();
  for (const char* op : {"Neg", "Abs"}) {
    CHECK_EQ(values_of<std::int64_t>(OneNode{.op = op}.run(pair)[0])[0], lowest);
  }
  // Slice with the extreme bounds that exporters write.
  std::vector<Given> slice;
  slice.push_back(ints({3}, {1, 2, 3}));
  for (std::int64_t v :
       {std::numeric_limits<std::int64_t>::max(), lowest, std::int64_t{0}, lowest}) {
    slice.push_back(ints({1}, {v}));
  }
  CHECK(values_of<std::int64_t>(OneNode{.op = "Slice"}.run(slice)[0]) ==
        std::vector<std::int64_t>{3});
}

KVIK_TEST(unknown_operators_are_listed_together) {
  Graph graph;
  const ValueId x = add_input(graph, "x");
  const ValueId y = add_node(graph, "Nonsense", {x})[0];
  graph.outputs = add_node(graph, "Other", {y}, {}, 1, "my.domain");
  Engine engine;
  const std::string message =
      thrown([&] { kvik::runtime::GraphExecutor executor(graph, engine.view); });
  CHECK(mentions(message, "Nonsense, my.domain.Other")) << ": " << message;
}

KVIK_TEST(inputs_are_checked_against_the_graph) {
  Graph graph;
  const ValueId x = add_input(graph, "x");
  graph.value(x).dtype = DType::kF32;
  graph.value(x).shape = std::vector<kvik::graph::Expr>{kvik::graph::Expr::symbol("batch"), 2};
  graph.outputs = add_node(graph, "Neg", {x});
  Engine engine;
  const kvik::runtime::GraphExecutor executor(graph, engine.view);
  const Given wrong_shape = floats({2, 3}, {1, 2, 3, 4, 5, 6}), wrong_type = ints({1, 2}, {1, 2});
  CHECK_EQ(thrown([&] { executor.run({&wrong_shape.tensor, 1}); }),
           "input 'x' has shape [2, 3]; expected [batch, 2]");
  CHECK_EQ(thrown([&] { executor.run({&wrong_type.tensor, 1}); }),
           "input 'x' has type int64; expected float32");
  CHECK(mentions(thrown([&] { executor.run({}); }), "0 inputs were given; the model has 1"));
}

KVIK_TEST(results_own_their_memory) {
  // One output is the input itself, two are views of one value.
  Graph graph;
  const ValueId x = add_input(graph, "x");
  const ValueId same = add_node(graph, "Identity", {x})[0];
  const ValueId y = add_node(graph, "Neg", {x})[0];
  const ValueId view = add_node(graph, "Identity", {y})[0];
  graph.outputs = {same, y, view};
  Engine engine;
  std::vector<kvik::runtime::OwnedTensor> results;
  {
    const kvik::runtime::GraphExecutor executor(graph, engine.view);
    Given given = floats({2}, {1, 2});
    results = executor.run({&given.tensor, 1});
    CHECK(results[0].tensor.data != given.tensor.data);
    given.storage.as<float>()[0] = 9;
  }
  CHECK(results[1].tensor.data != results[2].tensor.data);
  CHECK(values_of<float>(results[0]) == (std::vector<float>{1, 2}));
  CHECK(values_of<float>(results[2]) == (std::vector<float>{-1, -2}));
}

KVIK_TEST(wanted_values_run_what_they_need_only) {
  Graph graph;
  const ValueId x = add_input(graph, "x");
  const ValueId y = add_node(graph, "Neg", {x})[0];
  graph.outputs = add_node(graph, "Nonsense", {y});
  Engine engine;
  const kvik::runtime::GraphExecutor executor(graph, engine.view, {}, std::vector<ValueId>{y});
  const Given given = floats({1}, {3});
  CHECK_EQ(values_of<float>(executor.run({&given.tensor, 1})[0])[0], -3.0f);
}

KVIK_TEST(unaligned_constants_are_read_correctly) {
  auto bytes = std::make_shared<std::vector<std::byte>>(64);
  const float numbers[4] = {1, -2, 3, -4};
  std::memcpy(bytes->data() + 1, numbers, sizeof numbers);
  kvik::graph::ConstantTensor constant;
  constant.dtype = DType::kF32;
  constant.dims = Dims{2, 2};
  constant.data = {bytes->data() + 1, sizeof numbers};
  constant.owner = bytes;
  for (const char* op : {"Add", "MatMul"}) {
    Graph graph;
    const ValueId x = add_input(graph, "x");
    graph.outputs = add_node(graph, op, {x, graph.add_constant("c", constant)});
    Engine engine;
    const kvik::runtime::GraphExecutor executor(graph, engine.view);
    const Given given = floats({2, 2}, {1, 0, 0, 1});
    const auto got = values_of<float>(executor.run({&given.tensor, 1})[0]);
    const bool add = std::string(op) == "Add";
    CHECK(got == (add ? std::vector<float>{2, -2, 3, -3} : std::vector<float>{1, -2, 3, -4})) << op;
  }
}

// ---- Control flow ----------------------------------------------------------------------------

namespace {

// if (condition) captured + captured else -captured
Graph branching() {
  Graph graph;
  const ValueId condition = add_input(graph, "condition");
  const ValueId x = add_input(graph, "x");
  const auto branch = [](const std::string& op) {
    auto body = std::make_shared<Graph>();
    const ValueId captured = body->add_value("x");
    body->captures = {captured};
    std::vector<ValueId> inputs{captured};
    if (op == "Add") inputs.push_back(captured);
    body->outputs = add_node(*body, op, inputs);
    return body;
  };
  graph.outputs = add_node(graph, "If", {condition},
                           {{"then_branch", branch("Add")}, {"else_branch", branch("Neg")}});
  (void)x;
  return graph;
}

}  // namespace

KVIK_TEST(if_runs_the_branch_with_its_captures) {
  const Graph graph = branching();
  Engine engine;
  const kvik::runtime::GraphExecutor executor(graph, engine.view);
  const Given x = floats({2}, {3, 4});
  for (std::uint8_t flag : {0, 1, 200}) {
    const Given condition = bools({}, {flag});
    const std::vector<kvik::Tensor> inputs{condition.tensor, x.tensor};
    const auto expected = flag ? std::vector<float>{6, 8} : std::vector<float>{-3, -4};
    CHECK(values_of<float>(executor.run(inputs)[0]) == expected) << int{flag};
  }
}

namespace {
// carried += step (captured); stacked: each iteration's number
Graph counting_loop() {
  auto body = std::make_shared<Graph>();
  const ValueId iteration = add_input(*body, "i"), keep = add_input(*body, "go");
  const ValueId carried = add_input(*body, "carried");
  const ValueId step = body->add_value("step");
  body->captures = {step};
  const ValueId next = add_node(*body, "Add", {carried, step})[0];
  const ValueId number = add_node(*body, "Identity", {iteration})[0];
  body->outputs = {keep, next, number};

  Graph graph;
  const ValueId trips = add_input(graph, "trips"), start = add_input(graph, "start");
  add_input(graph, "step");
  graph.outputs = add_node(graph, "Loop", {trips, kNoValue, start}, {{"body", body}}, 2);
  return graph;
}

// A loop that only carries its value: there is no node in its body that could ask.
Graph idle_loop() {
  auto body = std::make_shared<Graph>();
  add_input(*body, "i");
  const ValueId keep = add_input(*body, "go"), carried = add_input(*body, "carried");
  body->outputs = {keep, carried};
  Graph graph;
  const ValueId trips = add_input(graph, "trips"), start = add_input(graph, "start");
  graph.outputs = add_node(graph, "Loop", {trips, kNoValue, start}, {{"body", body}});
  return graph;
}
}  // namespace

KVIK_TEST(loop_carries_and_stacks) {
  const Graph graph = counting_loop();
  Engine engine;
  const kvik::runtime::GraphExecutor executor(graph, engine.view);
  const Given count = ints({}, {4}), zero = floats({}, {0}), two = floats({}, {2});
  const std::vector<kvik::Tensor> inputs{count.tensor, zero.tensor, two.tensor};
  const auto results = executor.run(inputs);
  CHECK_EQ(values_of<float>(results[0])[0], 8.0f);
  CHECK(values_of<std::int64_t>(results[1]) == (std::vector<std::int64_t>{0, 1, 2, 3}));
}

KVIK_TEST(a_loop_is_cancelled_between_its_nodes_and_trips) {
  Engine engine;
  const Given count = ints({}, {100}), zero = floats({}, {0}), two = floats({}, {2});
  const auto cancel = [&](const Graph& graph, const std::vector<kvik::Tensor>& inputs, int asked) {
    const kvik::runtime::GraphExecutor executor(graph, engine.view);
    try {
      executor.run(inputs, [&] { return asked-- == 0; });
    } catch (const kvik::Error& error) {
      CHECK(error.code() == ErrorCode::kCancelled) << ": " << error.what();
      return std::string(error.what());
    }
    return std::string();
  };
  // Asked before the loop, then before each trip and before each of a body's two nodes.
  const Graph counting = counting_loop();
  const std::vector<kvik::Tensor> three{count.tensor, zero.tensor, two.tensor};
  CHECK_EQ(cancel(counting, three, 0), "cancelled before Loop node '/node0'");
  CHECK_EQ(cancel(counting, three, 7), "Loop node '/node0': cancelled before trip 2");
  CHECK_EQ(cancel(counting, three, 8), "Loop node '/node0': cancelled before Add node '/node0'");
  CHECK_EQ(cancel(counting, three, 1 + 3 * 100), "");
  const Graph idle = idle_loop();
  const std::vector<kvik::Tensor> pair{count.tensor, zero.tensor};
  CHECK_EQ(cancel(idle, pair, 51), "Loop node '/node0': cancelled before trip 50");
}

int main(int argc, char** argv) {
  return run_all(argc, argv);
}
