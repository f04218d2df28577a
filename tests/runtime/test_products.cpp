// Products of the same rows in one call: each has the bits that it has alone.
#include "ops/product.h"

#include <string>

#include "kernels/support.h"

using kvik::AlignedBuffer;
using kvik::Dims;
using kvik::ThreadPool;
using kvik::WeightType;
using kvik::graph::ConstantTensor;
using kvik::ops::PackedWeights;
using kvik::ops::RowProduct;
using namespace kvik::test;  // NOLINT: the names of this harness

namespace {

constexpr std::int64_t kInputs = 200;  // no multiple of a group

// W [kInputs, columns] of numbers up to 1, in this precision.
struct Weights {
  ConstantTensor floats;
  std::shared_ptr<const PackedWeights> packed;

  Weights(const kvik::kernels::KernelTable& table, ThreadPool& pool, WeightType type,
          std::int64_t columns, std::uint64_t stream) {
    Random random(stream);
    std::vector<float> values(static_cast<std::size_t>(kInputs * columns));
    for (float& v : values) v = random.uniform(-1.0f, 1.0f);
    floats = ConstantTensor::from_floats(values, Dims{kInputs, columns});
    kvik::ops::WeightCache cache(type);
    packed = cache.get({floats, {}, false, kInputs}, type, table, pool);
    CHECK(packed->type == type);
  }
};

// Rows of which every third has an element far larger than the others: an outlier.
struct Inputs : Matrix {
  explicit Inputs(std::int64_t count) : Matrix(count, kInputs, kInputs + 8) {
    Random random(5);
    fill(random, -1.0f, 1.0f);
    for (std::int64_t r = 0; r < count; r += 3) at(r, r % kInputs) = 60.0f;
  }
};

// Where the rows are rounded, poisoned: a sum of a group that nobody made would show.
AlignedBuffer memory_of(const kvik::kernels::KernelTable& table, const Matrix& x,
                        const std::vector<RowProduct>& products) {
  AlignedBuffer memory(kvik::ops::rounded_bytes(table, x.rows, products));
  std::fill_n(memory.as<unsigned char>(), memory.size(), static_cast<unsigned char>(0x7f));
  return memory;
}

// y [rows, columns] of each product, computed in one call.
std::vector<std::vector<float>> products_of(const kvik::kernels::KernelTable& table,
                                            ThreadPool& pool, const Matrix& x,
                                            const std::vector<const Weights*>& weights) {
  std::vector<std::vector<float>> results;
  std::vector<RowProduct> products;
  for (const Weights* w : weights) {
    const std::int64_t n = w->packed->n;
    results.emplace_back(static_cast<std::size_t>(x.rows * n));
    products.push_back({w->packed.get(), {}, results.back().data(), n});
  }
  const AlignedBuffer memory = memory_of(table, x, products);
  kvik::ops::multiply(table, pool, x.data(), x.stride, x.rows, products, memory.data());
  return results;
}

}  // namespace

KVIK_TEST(products_of_different_precisions_share_their_rows) {
  const std::vector<std::vector<WeightType>> mixes = {
      {WeightType::kI8, WeightType::kI4},
      {WeightType::kI4, WeightType::kI8},
      {WeightType::kI8, WeightType::kI8, WeightType::kI4, WeightType::kI8},
      {WeightType::kF32, WeightType::kI8, WeightType::kBF16, WeightType::kI4}};
  for_each_isa([&](const kvik::kernels::KernelTable& table) {
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      for (const auto& mix : mixes) {
        std::vector<Weights> weights;
        std::string names;
        for (const WeightType type : mix) {
          // Few panels, and a last one that is not full.
          const auto i = static_cast<std::int64_t>(weights.size());
          weights.emplace_back(table, pool, type, 70 + 40 * i, static_cast<std::uint64_t>(i));
          names += std::string(" ") + kvik::weight_type_name(type);
        }
        std::vector<const Weights*> all;
        for (const Weights& w : weights) all.push_back(&w);
        for (const std::int64_t rows : {1, 2, 7, 65}) {
          const Inputs x(rows);
          const auto together = products_of(table, pool, x, all);
          for (std::size_t i = 0; i < all.size(); ++i) {
            const auto alone = products_of(table, pool, x, {all[i]});
            CHECK(same_bits(together[i], alone[0]))
                << table.name << ", product " << i << " of" << names << ", " << rows << " rows, "
                << threads << " threads";
          }
        }
      }
    }
  });
}

// What a thread computes of several products by itself, as steps of recurrent layers do.
KVIK_TEST(panels_of_different_precisions_share_their_rows) {
  for_each_isa([](const kvik::kernels::KernelTable& table) {
    ThreadPool pool(1);
    const std::int64_t columns = 90;
    const Weights bytes(table, pool, WeightType::kI8, columns, 1);
    const Weights nibbles(table, pool, WeightType::kI4, columns, 2);
    const Inputs x(9);
    for (const auto& order : {std::vector<const Weights*>{&bytes, &nibbles},
                              std::vector<const Weights*>{&nibbles, &bytes}}) {
      std::vector<std::vector<float>> results;
      std::vector<RowProduct> products;
      for (const Weights* w : order) {
        results.emplace_back(static_cast<std::size_t>(x.rows * columns));
        products.push_back({w->packed.get(), {}, results.back().data(), columns});
      }
      const AlignedBuffer memory = memory_of(table, x, products);
      const std::int64_t panels = (columns + table.panel - 1) / table.panel;
      kvik::ops::multiply_panels(table, x.data(), x.stride, x.rows, products, 0, panels,
                                 memory.data());
      for (std::size_t i = 0; i < order.size(); ++i) {
        CHECK(same_bits(results[i], products_of(table, pool, x, {order[i]})[0]))
            << table.name << ", product " << i;
      }
    }
  });
}

int main(int argc, char** argv) {
  return run_all(argc, argv);
}
