// "Numbers that do not move" at the level of operators: threads, rows and batches never change a
// bit; and what fused operators promise.
#include <cstring>
#include <limits>

#include "base/float16.h"
#include "cpp/check.h"
#include "kernels/support.h"
#include "runtime/one_node.h"

using kvik::Dims;
using kvik::DType;
using namespace kvik::test;  // NOLINT: the names of this harness

namespace {

Given random(const Dims& dims, std::uint64_t stream) {
  Random random(stream);
  std::vector<float> values(static_cast<std::size_t>(dims.elements()));
  for (float& v : values) v = random.uniform(-1.0f, 1.0f);
  return floats(dims, values);
}

std::vector<Given> list(Given a) {
  std::vector<Given> v;
  v.push_back(std::move(a));
  return v;
}
template <typename... More>
std::vector<Given> list(Given a, More... more) {
  std::vector<Given> v = list(std::move(a));
  (v.push_back(std::move(more)), ...);
  return v;
}

// Runs a node with 1, 2 and 3 threads on every table; the bits must not differ.
void check_threads(OneNode node, const std::vector<Given>& inputs) {
  for_each_isa([&](const kvik::kernels::KernelTable& table) {
    node.table = &table;
    node.threads = 1;
    const auto expected = values_of<float>(node.run(inputs)[0]);
    for (int threads : {2, 3}) {
      node.threads = threads;
      CHECK(same_bits(values_of<float>(node.run(inputs)[0]), expected))
          << node.op << " with " << threads << " threads, " << node.table->name;
    }
  });
}

// The first `rows` slices of a tensor along dimension 0, as a tensor of its own.
Given first_rows(const Given& given, std::int64_t rows) {
  Dims dims = given.tensor.dims;
  dims[0] = rows;
  const float* p = given.tensor.as<float>();
  return floats(dims, {p, p + dims.elements()});
}

}  // namespace

KVIK_TEST(threads_do_not_change_a_bit) {
  check_threads({.op = "MatMul"}, list(random({5, 70, 65}, 1), random({5, 65, 130}, 2)));
  check_threads({.op = "MatMul", .constants = {1}},
                list(random({3, 50, 65}, 3), random({65, 130}, 4)));
  for (const auto type : {kvik::WeightType::kBF16, kvik::WeightType::kI8, kvik::WeightType::kI4}) {
    for (const std::int64_t rows : {1, 3, 20, 150}) {
      check_threads({.op = "Linear", .domain = "kvik", .constants = {1}, .weights = type},
                    list(random({rows, 65}, 3), random({65, 700}, 4)));
    }
  }
  check_threads({.op = "MatMul"}, list(random({2, 3, 40, 33}, 5), random({3, 33, 50}, 6)));
  check_threads({.op = "Gemm", .attributes = {{"transB", std::int64_t{1}}}},
                list(random({150, 65}, 7), random({130, 65}, 8), random({130}, 9)));
  check_threads({.op = "Softmax", .attributes = {{"axis", std::int64_t{1}}}},
                list(random({70, 33, 20}, 10)));
  check_threads({.op = "Exp"}, list(random({7, 9999}, 11)));
  check_threads({.op = "Add"}, list(random({33, 1001}, 12), random({1001}, 13)));
  check_threads({.op = "Mul"}, list(random({33, 1, 101}, 14), random({50, 1}, 15)));
  check_threads({.op = "LayerNormalization"}, list(random({300, 130}, 16), random({130}, 17)));
  check_threads({.op = "ReduceMean"}, list(random({300, 130}, 18), ints({1}, {1})));
  check_threads(
      {.op = "Attention", .attributes = {{"is_causal", std::int64_t{1}}}},
      list(random({2, 4, 70, 24}, 19), random({2, 2, 70, 24}, 20), random({2, 2, 70, 24}, 21)));
}

KVIK_TEST(rows_do_not_know_of_each_other) {
  const Given x = random({67, 65}, 30), w = random({65, 130}, 31);
  for (bool constant : {false, true}) {
    OneNode node{.op = "MatMul"};
    if (constant) node.constants = {1};
    const auto all =
        values_of<float>(node.run(list(random({67, 65}, 30), random({65, 130}, 31)))[0]);
    for (std::int64_t rows : {1, 2, 7}) {
      const auto some =
          values_of<float>(node.run(list(first_rows(x, rows), random({65, 130}, 31)))[0]);
      CHECK(same_bits(some, {all.begin(), all.begin() + rows * 130})) << rows << " rows";
    }
  }
  // A batch of matrices, and each alone.
  OneNode product{.op = "MatMul"};
  const auto batch =
      values_of<float>(product.run(list(random({6, 20, 33}, 32), random({6, 33, 40}, 33)))[0]);
  const auto one = values_of<float>(product.run(
      list(first_rows(random({6, 20, 33}, 32), 1), first_rows(random({6, 33, 40}, 33), 1)))[0]);
  CHECK(same_bits(one, {batch.begin(), batch.begin() + 20 * 40}));
}

KVIK_TEST(rows_do_not_know_of_each_other_in_low_precision) {
  for_each_isa([](const kvik::kernels::KernelTable& table) {
    const Given x = random({67, 65}, 34);
    for (const auto type :
         {kvik::WeightType::kBF16, kvik::WeightType::kI8, kvik::WeightType::kI4}) {
      const OneNode node{
          .op = "Linear", .domain = "kvik", .constants = {1}, .table = &table, .weights = type};
      const auto all =
          values_of<float>(node.run(list(random({67, 65}, 34), random({65, 130}, 35)))[0]);
      for (std::int64_t rows : {1, 2, 7, 16, 17, 33}) {
        const auto some =
            values_of<float>(node.run(list(first_rows(x, rows), random({65, 130}, 35)))[0]);
        CHECK(same_bits(some, {all.begin(), all.begin() + rows * 130}))
            << table.name << ", " << kvik::weight_type_name(type) << ", " << rows << " rows";
      }
    }
  });
}

// Inputs of bf16 layers are rounded where the table says so, and nowhere else.
KVIK_TEST(bf16_layers_round_their_inputs_where_the_table_does) {
  for_each_isa([](const kvik::kernels::KernelTable& table) {
    for (const std::int64_t count : {1, 40}) {
      const Given x = random({count, 65}, 36);
      const float* p = x.tensor.as<float>();
      std::vector<float> rounded(p, p + count * 65);
      for (float& v : rounded) v = static_cast<float>(kvik::BFloat16(v));
      const OneNode node{.op = "Linear",
                         .domain = "kvik",
                         .constants = {1},
                         .table = &table,
                         .weights = kvik::WeightType::kBF16};
      const auto plain =
          values_of<float>(node.run(list(random({count, 65}, 36), random({65, 130}, 37)))[0]);
      const auto of_rounded =
          values_of<float>(node.run(list(floats({count, 65}, rounded), random({65, 130}, 37)))[0]);
      CHECK_EQ(same_bits(plain, of_rounded), table.rounds_rows) << table.name;
    }
  });
}

// Position i of a causal attention over S positions is the last of one over i + 1, and the only
// query of one with a past of i.
KVIK_TEST(causal_attention_is_incremental) {
  const std::int64_t length = 150, d = 24;
  const OneNode node{
      .op = "Attention", .attributes = {{"is_causal", std::int64_t{1}}}, .outputs = 3};
  const Given q = random({1, 1, length, d}, 40), k = random({1, 1, length, d}, 41);
  const Given v = random({1, 1, length, d}, 42);
  const auto prefix = [&](const Given& g, std::int64_t from, std::int64_t to) {
    const float* p = g.tensor.as<float>();
    return floats({1, 1, to - from, d}, {p + from * d, p + to * d});
  };
  const auto all = values_of<float>(
      node.run(list(prefix(q, 0, length), prefix(k, 0, length), prefix(v, 0, length)))[0]);
  for (std::int64_t at : {0, 1, 63, 64, 65, 127, 128, 149}) {
    const std::vector<float> expected(all.begin() + at * d, all.begin() + (at + 1) * d);
    const auto cut = values_of<float>(
        node.run(list(prefix(q, 0, at + 1), prefix(k, 0, at + 1), prefix(v, 0, at + 1)))[0]);
    CHECK(same_bits({cut.end() - d, cut.end()}, expected)) << "cut at " << at;
    const auto step =
        node.run(list(prefix(q, at, at + 1), prefix(k, at, at + 1), prefix(v, at, at + 1), Given{},
                      prefix(k, 0, at), prefix(v, 0, at)));
    CHECK(same_bits(values_of<float>(step[0]), expected)) << "with a past of " << at;
    CHECK_EQ(step[1].tensor.dims.str(), (Dims{1, 1, at + 1, d}).str());
  }
}

KVIK_TEST(a_hidden_row_of_attention_is_zero) {
  const OneNode node{.op = "Attention"};
  std::vector<std::uint8_t> mask(3 * 5, 1);
  std::fill_n(mask.begin() + 5, 5, std::uint8_t{0});
  const auto y = values_of<float>(node.run(list(random({1, 1, 3, 8}, 50), random({1, 1, 5, 8}, 51),
                                                random({1, 1, 5, 8}, 52), bools({3, 5}, mask)))[0]);
  CHECK(std::all_of(y.begin() + 8, y.begin() + 16, [](float v) { return v == 0.0f; }));
  CHECK(std::any_of(y.begin(), y.begin() + 8, [](float v) { return v != 0.0f; }));
}

KVIK_TEST(linear_is_matmul_bias_activation_residual) {
  const std::int64_t k = 37, n = 70;
  const Given w = random({k, n}, 61);
  std::vector<float> transposed(static_cast<std::size_t>(k * n));
  for (std::int64_t i = 0; i < k; ++i) {
    for (std::int64_t c = 0; c < n; ++c) {
      transposed[static_cast<std::size_t>(c * k + i)] = w.tensor.as<float>()[i * n + c];
    }
  }
  const auto product = values_of<float>(
      OneNode{.op = "MatMul"}.run(list(random({2, 9, k}, 60), random({k, n}, 61)))[0]);
  const auto bias = random({n}, 62);
  const auto residual = random({2, 9, n}, 63);
  OneNode linear{.op = "Linear",
                 .attributes = {{"activation", std::string("relu")}},
                 .domain = "kvik",
                 .constants = {1}};
  const auto plain = values_of<float>(linear.run(
      list(random({2, 9, k}, 60), random({k, n}, 61), random({n}, 62), random({2, 9, n}, 63)))[0]);
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const float sum = product[i] + bias.tensor.as<float>()[i % static_cast<std::size_t>(n)];
    const float expected = std::max(sum, 0.0f) + residual.tensor.as<float>()[i];
    CHECK_EQ(plain[i], expected) << "element " << i;
    if (plain[i] != expected) return;
  }
  linear.attributes["trans_w"] = std::int64_t{1};
  const auto other =
      values_of<float>(linear.run(list(random({2, 9, k}, 60), floats({n, k}, transposed),
                                       random({n}, 62), random({2, 9, n}, 63)))[0]);
  CHECK(same_bits(plain, other));
}

KVIK_TEST(weights_are_packed_once) {
  const auto& table = kvik::kernels::active_table();
  kvik::ThreadPool pool(2);
  kvik::ops::WeightCache cache;
  const auto constant = kvik::graph::ConstantTensor::allocate(DType::kF32, Dims{40, 50});
  const auto get = [&](bool transposed, std::int64_t k, kvik::WeightType type) {
    return cache.get({constant, {}, transposed, k}, type, table, pool);
  };
  const auto a = get(false, 40, kvik::WeightType::kF32);
  const auto b = get(false, 40, kvik::WeightType::kF32);
  const auto c = get(true, 50, kvik::WeightType::kF32);
  CHECK(a == b);
  CHECK(a != c);
  CHECK(a != get(false, 40, kvik::WeightType::kBF16));
}

int main(int argc, char** argv) {
  return run_all(argc, argv);
}
