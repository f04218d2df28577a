// Convolutions, pools and Resize: the same bits whatever the threads and the batch; convolutions
// against plain sums; attributes that make no sense.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/support.h"
#include "kvik/error.h"
#include "runtime/random_given.h"

using kvik::Dims;
using kvik::DType;
using kvik::ErrorCode;
using kvik::WeightType;
using namespace kvik::test;  // NOLINT: the names of this harness

namespace {

using Ints = std::vector<std::int64_t>;
constexpr std::int64_t kHuge = std::int64_t{1} << 62;

struct ConvCase {
  const char* op;
  Dims x, w;
  Attributes attributes;
};

const ConvCase kConvolutions[] = {
    {"Conv", {2, 6, 19, 17}, {70, 6, 3, 3}, {{"pads", Ints{1, 1, 1, 1}}}},
    {"Conv", {1, 12, 30}, {8, 12, 5}, {{"pads", Ints{4, 0}}, {"dilations", Ints{2}}}},
    {"Conv", {1, 40, 13, 11}, {130, 40, 1, 1}, {}},
    {"Conv", {2, 8, 9, 9}, {12, 4, 3, 2}, {{"group", std::int64_t{2}}, {"strides", Ints{2, 3}}}},
    {"Conv", {1, 3, 7, 8, 9}, {5, 3, 3, 2, 3}, {{"pads", Ints{1, 0, 2, 1, 2, 0}}}},
    {"Conv",
     {2, 37, 12, 14},
     {37, 1, 3, 3},
     {{"group", std::int64_t{37}}, {"pads", Ints{1, 1, 1, 1}}}},
    {"Conv", {1, 5, 6, 7}, {10, 1, 3, 3}, {{"group", std::int64_t{5}}}},
    {"Conv",
     {1, 4, 11, 10},
     {9, 4, 4, 4},
     {{"auto_pad", std::string("SAME_UPPER")}, {"strides", Ints{2, 2}}}},
    {"Conv",
     {1, 4, 11, 10},
     {9, 4, 4, 4},
     {{"auto_pad", std::string("SAME_LOWER")}, {"strides", Ints{3, 2}}}},
    {"ConvTranspose",
     {2, 6, 7, 9},
     {6, 33, 4, 4},
     {{"strides", Ints{2, 2}}, {"pads", Ints{1, 1, 1, 1}}}},
    {"ConvTranspose",
     {1, 6, 5, 4},
     {6, 3, 3, 2},
     {{"strides", Ints{3, 1}}, {"dilations", Ints{2, 3}}, {"output_padding", Ints{1, 0}}}},
    {"ConvTranspose",
     {1, 6, 5, 4},
     {6, 2, 2, 2},
     {{"strides", Ints{4, 3}}, {"group", std::int64_t{3}}}},
    {"ConvTranspose",
     {1, 8, 5, 6},
     {8, 1, 3, 3},
     {{"strides", Ints{2, 2}}, {"group", std::int64_t{8}}}},
    {"ConvTranspose", {1, 3, 6}, {3, 2, 5}, {{"strides", Ints{2}}, {"output_shape", Ints{20}}}},
    {"ConvTranspose",
     {1, 3, 6},
     {3, 2, 4},
     {{"strides", Ints{2}}, {"dilations", Ints{2}}, {"auto_pad", std::string("SAME_UPPER")}}},
    {"ConvTranspose", {1, 2, 3, 4, 3}, {2, 3, 2, 3, 2}, {{"strides", Ints{1, 2, 2}}}},
};

std::int64_t groups_of(const ConvCase& c) {
  const auto it = c.attributes.find("group");
  return it == c.attributes.end() ? 1 : std::get<std::int64_t>(it->second);
}

std::vector<Given> inputs_of(const ConvCase& c, std::uint64_t stream) {
  const bool transposed = std::string(c.op) == "ConvTranspose";
  const std::int64_t out = transposed ? c.w[1] * groups_of(c) : c.w[0];
  return list(random(c.x, stream), random(c.w, stream + 1), random({out}, stream + 2));
}

Given in_double(const Given& given) {
  const float* p = given.tensor.as<float>();
  return Given::of(DType::kF64, given.tensor.dims,
                   std::vector<double>(p, p + given.tensor.elements()));
}

Given first_image(const Given& given) {
  Dims dims = given.tensor.dims;
  dims[0] = 1;
  const float* p = given.tensor.as<float>();
  return floats(dims, {p, p + dims.elements()});
}

std::pair<ErrorCode, std::string> refusal(const OneNode& node, const std::vector<Given>& inputs) {
  try {
    node.run(inputs);
  } catch (const kvik::Error& error) {
    return {error.code(), error.what()};
  }
  return {ErrorCode::kInternal, "it ran"};
}

}  // namespace

// Against the plain sums in double that float64 is computed with.
KVIK_TEST(convolutions_are_sums) {
  for_each_isa([](const kvik::kernels::KernelTable& table) {
    for (const ConvCase& c : kConvolutions) {
      OneNode node{.op = c.op, .attributes = c.attributes, .table = &table};
      const auto inputs = inputs_of(c, 10);
      std::vector<Given> wide;
      for (const Given& given : inputs) wide.push_back(in_double(given));
      const auto exact = node.run(wide);
      const auto want = values_of<double>(exact[0]);
      for (const bool constant : {false, true}) {
        node.constants = constant ? std::vector<std::size_t>{1} : std::vector<std::size_t>{};
        const auto results = node.run(inputs);
        CHECK_EQ(results[0].tensor.dims.str(), exact[0].tensor.dims.str()) << c.op;
        // A chain of taps and channels, each product at most 1.
        const double terms = static_cast<double>(c.w.elements());
        expect_close(std::string(table.name) + " " + c.op + " " + c.w.str(),
                     values_of<float>(results[0]), want,
                     std::vector<double>(want.size(), 4 * kEps * terms), 1e-2);
      }
    }
  });
}

KVIK_TEST(threads_and_batches_do_not_change_a_bit) {
  for_each_isa([](const kvik::kernels::KernelTable& table) {
    for (const ConvCase& c : kConvolutions) {
      for (const WeightType type : {WeightType::kF32, WeightType::kBF16, WeightType::kI8}) {
        OneNode node{.op = c.op,
                     .attributes = c.attributes,
                     .constants = {1},
                     .threads = 1,
                     .table = &table,
                     .weights = type};
        const auto inputs = inputs_of(c, 20);
        const auto expected = values_of<float>(node.run(inputs)[0]);
        for (const int threads : {2, 3}) {
          node.threads = threads;
          CHECK(same_bits(values_of<float>(node.run(inputs)[0]), expected))
              << c.op << " " << c.w.str() << " " << threads << " threads, " << table.name;
        }
        auto alone = inputs_of(c, 20);
        alone[0] = first_image(inputs[0]);
        const auto one = values_of<float>(node.run(alone)[0]);
        CHECK(same_bits(
            one, {expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(one.size())}))
            << c.op << " " << c.w.str() << " alone, " << table.name;
      }
    }
  });
}

KVIK_TEST(low_precision_is_near) {
  const ConvCase c{"Conv", {1, 32, 12, 12}, {64, 32, 3, 3}, {}};
  OneNode node{.op = c.op, .constants = {1}};
  const auto exact = values_of<float>(node.run(inputs_of(c, 30))[0]);
  node.weights = WeightType::kI8;
  const auto rounded = values_of<float>(node.run(inputs_of(c, 30))[0]);
  float worst = 0.0f;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    worst = std::max(worst, std::fabs(exact[i] - rounded[i]));
  }
  CHECK(worst > 0.0f && worst < 0.5f) << worst;
}

KVIK_TEST(pools_and_resize_do_not_depend_on_threads) {
  const auto floats_list = [](const std::vector<float>& v) {
    return floats({static_cast<std::int64_t>(v.size())}, v);
  };
  struct Case {
    OneNode node;
    std::vector<Given> inputs;
  };
  std::vector<Case> cases;
  const Attributes window{
      {"kernel_shape", Ints{3, 3}}, {"pads", Ints{1, 1, 1, 1}}, {"strides", Ints{2, 1}}};
  for (const char* op : {"MaxPool", "AveragePool", "LpPool"}) {
    cases.push_back({{.op = op, .attributes = window}, list(random({3, 7, 41, 40}, 40))});
  }
  for (const char* op : {"GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"}) {
    cases.push_back({{.op = op}, list(random({3, 70, 41, 11}, 41))});
  }
  for (const char* mode : {"nearest", "linear", "cubic"}) {
    cases.push_back({{.op = "Resize", .attributes = {{"mode", std::string(mode)}}},
                     list(random({2, 5, 30, 31}, 42), Given{}, floats_list({1, 1, 1.7f, 2.0f}))});
  }
  cases.push_back(
      {{.op = "LRN", .attributes = {{"size", std::int64_t{5}}}}, list(random({2, 9, 30, 31}, 43))});
  for (Case& c : cases) {
    c.node.threads = 1;
    const auto expected = values_of<float>(c.node.run(c.inputs)[0]);
    for (const int threads : {2, 3}) {
      c.node.threads = threads;
      CHECK(same_bits(values_of<float>(c.node.run(c.inputs)[0]), expected)) << c.node.op;
    }
  }
}

// A file may say anything: an error is the answer, whatever the numbers.
KVIK_TEST(what_makes_no_sense_is_refused) {
  const Dims image{1, 4, 6, 6};
  const auto refused = [&](const char* op, const char* what, Attributes attributes, const Dims& x,
                           const Dims& w) {
    OneNode node{.op = op, .attributes = std::move(attributes)};
    const bool with_weights = w.rank > 0;
    for (const bool constant : {false, true}) {
      if (constant && with_weights) node.constants = {1};
      const auto [code, message] =
          refusal(node, with_weights ? list(random(x, 1), random(w, 2)) : list(random(x, 1)));
      CHECK(code != ErrorCode::kInternal) << op << ", " << what << ": " << message;
    }
  };
  const auto window = [&](const char* what, const char* key, kvik::graph::Attribute value) {
    refused("Conv", what, {{key, value}}, image, {5, 4, 3, 3});
    refused("ConvTranspose", what, {{key, value}}, image, {4, 5, 3, 3});
    for (const char* op : {"MaxPool", "AveragePool", "LpPool"}) {
      Attributes attributes{{"kernel_shape", Ints{3, 3}}};
      attributes.insert_or_assign(key, value);
      refused(op, what, attributes, image, {});
    }
  };
  window("a stride of 0", "strides", Ints{0, 1});
  window("a negative stride", "strides", Ints{1, -1});
  window("a huge stride", "strides", Ints{kHuge, 1});
  window("too few strides", "strides", Ints{1});
  window("too many strides", "strides", Ints(40, 1));
  window("a dilation of 0", "dilations", Ints{0, 1});
  window("a huge dilation", "dilations", Ints{kHuge, kHuge});
  window("a negative pad", "pads", Ints{-1, 0, 0, 0});
  window("an odd number of pads", "pads", Ints{1, 1, 1});
  window("too many pads", "pads", Ints(40, 1));
  window("huge pads", "pads", Ints{kHuge, kHuge, kHuge, kHuge});
  window("auto_pad", "auto_pad", std::string("SAME"));
  window("kernel_shape", "kernel_shape", Ints{3, 3, 3});
  window("a kernel of 0", "kernel_shape", Ints{0, 3});
  window("a negative kernel", "kernel_shape", Ints{-3, 3});

  refused("Conv", "a kernel larger than the image", {}, image, {5, 4, 7, 3});
  refused("MaxPool", "a kernel larger than the image", {{"kernel_shape", Ints{7, 1}}}, image, {});
  refused("Conv", "pads for more memory than there is", {{"pads", Ints{1 << 20, 1 << 20, 0, 0}}},
          image, {5, 4, 3, 3});
  refused("MaxPool", "pads for more memory than there is",
          {{"kernel_shape", Ints{2, 2}}, {"pads", Ints{1 << 20, 1 << 20, 0, 0}}}, image, {});
  refused("Conv", "a dilation beyond the image", {{"dilations", Ints{4, 1}}}, image, {5, 4, 3, 3});
  for (const char* op : {"Conv", "ConvTranspose"}) {
    refused(op, "a group of 0", {{"group", std::int64_t{0}}}, image, {4, 4, 3, 3});
    refused(op, "a negative group", {{"group", std::int64_t{-1}}}, image, {4, 4, 3, 3});
    refused(op, "a group that does not divide", {{"group", std::int64_t{3}}}, image, {4, 4, 3, 3});
    refused(op, "a huge group", {{"group", kHuge}}, image, {4, 4, 3, 3});
    refused(op, "channels that do not fit", {}, image, {3, 3, 3, 3});
    refused(op, "ranks that do not fit", {}, image, {4, 4, 3});
    refused(op, "no spatial axes", {}, {1, 4}, {4, 4});
    refused(op, "a kernel without positions", {}, image, {4, 4, 0, 3});
    refused(op, "an image without pixels", {{"auto_pad", std::string("VALID")}}, {1, 4, 0, 6},
            op[4] == 'T' ? Dims{4, 4, 0, 3} : Dims{4, 4, 3, 3});
  }
  refused("ConvTranspose", "a negative output_padding", {{"output_padding", Ints{-1, 0}}}, image,
          {4, 5, 3, 3});
  refused("ConvTranspose", "a huge output_padding", {{"output_padding", Ints{kHuge, 0}}}, image,
          {4, 5, 3, 3});
  refused("ConvTranspose", "a negative output_shape", {{"output_shape", Ints{-8, 8}}}, image,
          {4, 5, 3, 3});
  refused("ConvTranspose", "a huge output_shape", {{"output_shape", Ints{kHuge, 8}}}, image,
          {4, 5, 3, 3});
  refused("ConvTranspose", "too short an output_shape", {{"output_shape", Ints{8}}}, image,
          {4, 5, 3, 3});
  refused("ConvTranspose", "pads larger than the output", {{"pads", Ints{9, 9, 9, 9}}}, image,
          {4, 5, 3, 3});
  for (const char* op : {"MaxPool", "AveragePool", "LpPool", "MaxUnpool"}) {
    refused(op, "no kernel", {}, image, {});
    refused(op, "no spatial axes", {{"kernel_shape", Ints{1}}}, {3, 4}, {});
  }
  refused("LpPool", "p of 0", {{"kernel_shape", Ints{2, 2}}, {"p", std::int64_t{0}}}, image, {});
  refused("GlobalMaxPool", "a vector", {}, {3}, {});
  refused("LRN", "a size of 0", {{"size", std::int64_t{0}}}, image, {});
}

// A file of some bytes may declare any of these: nothing may be done for each of them.
KVIK_TEST(weights_without_elements_take_no_time) {
  constexpr std::int64_t kMany = std::int64_t{1} << 44;
  const auto quick = [&](const char* op, Attributes attributes, const Dims& x, const Dims& w) {
    OneNode node{.op = op, .attributes = std::move(attributes)};
    for (const bool constant : {false, true}) {
      if (constant) node.constants = {1};
      refusal(node, list(floats(x, std::vector<float>(static_cast<std::size_t>(x.elements()))),
                         floats(w, {})));
    }
  };
  for (const char* op : {"Conv", "ConvTranspose"}) {
    quick(op, {{"group", std::int64_t{1} << 60}}, {1, 1024, 5}, {0, 1, 3});
    quick(op, {{"group", kMany}}, {1, 0, 5}, {kMany, 0, 1});
    quick(op, {}, {1, 0, 5}, {kMany, 0, 1});
    quick(op, {}, {1, 1, 5}, {0, 1, kMany});
    quick(op, {{"strides", Ints{kMany}}}, {1, 0, 1}, {0, 1, kMany});
    quick(op, {{"strides", Ints{kMany}}}, {1, 1, 1}, {1, 0, kMany});
  }
  const auto bias = values_of<float>(OneNode{.op = "Conv"}.run(
      list(floats({2, 0, 3}, {}), floats({2, 0, 2}, {}), floats({2}, {5, 6})))[0]);
  CHECK((bias == std::vector<float>{5, 5, 6, 6, 5, 5, 6, 6}));
}

KVIK_TEST(strides_and_dilations_may_be_huge) {
  constexpr std::int64_t kStride = std::int64_t{1} << 48;
  const OneNode node{.op = "ConvTranspose",
                     .attributes = {{"strides", Ints{kStride}}, {"dilations", Ints{kStride - 1}}}};
  const auto y =
      values_of<float>(node.run(list(floats({1, 1, 1}, {3}), floats({1, 1, 1}, {2})))[0]);
  CHECK((y == std::vector<float>{6}));
}

// Panels of their own for so many groups would be 80 times their weights.
KVIK_TEST(many_small_groups_need_no_panels) {
  constexpr std::int64_t kGroups = 70000;
  const Given x = random({1, kGroups, 2}, 1), w = random({2 * kGroups, 1, 1}, 2);
  const OneNode node{.op = "Conv", .attributes = {{"group", kGroups}}, .constants = {1}};
  const auto y = values_of<float>(
      node.run(list(random({1, kGroups, 2}, 1), random({2 * kGroups, 1, 1}, 2)))[0]);
  std::size_t wrong = 0;
  for (std::int64_t i = 0; i < 4 * kGroups; ++i) {
    const float expected = x.tensor.as<float>()[i / 4 * 2 + i % 2] * w.tensor.as<float>()[i / 2];
    wrong += y[static_cast<std::size_t>(i)] != expected;
  }
  CHECK_EQ(wrong, 0u);
}

// An image without pixels is all padding.
KVIK_TEST(padding_alone_is_an_image) {
  const Attributes pads{{"pads", Ints{1, 1, 1, 1}}};
  const auto conv = values_of<float>(OneNode{.op = "Conv", .attributes = pads}.run(
      list(random({1, 2, 0, 3}, 1), random({3, 2, 2, 2}, 2), floats({3}, {1, 2, 3})))[0]);
  CHECK_EQ(conv.size(), 12u);
  for (std::size_t i = 0; i < conv.size(); ++i) CHECK_EQ(conv[i], static_cast<float>(i / 4 + 1));
  Attributes pool = pads;
  pool["kernel_shape"] = Ints{2, 2};
  const auto top = values_of<float>(
      OneNode{.op = "MaxPool", .attributes = pool}.run(list(random({1, 1, 0, 3}, 1)))[0]);
  CHECK_EQ(top.size(), 4u);
  for (const float v : top) CHECK_EQ(v, -std::numeric_limits<float>::infinity());
}

KVIK_TEST(max_unpool_checks_its_indices) {
  const OneNode node{.op = "MaxUnpool",
                     .attributes = {{"kernel_shape", Ints{2, 2}}, {"strides", Ints{2, 2}}}};
  for (const std::int64_t index : {std::int64_t{-1}, std::int64_t{16}, kHuge}) {
    const auto [code, message] =
        refusal(node, list(random({1, 1, 2, 2}, 1), ints({1, 1, 2, 2}, {0, 1, 2, index})));
    CHECK(code == ErrorCode::kInvalidArgument) << message;
  }
}

KVIK_TEST(resize_refuses_what_makes_no_sense) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const auto scales = [](std::vector<float> v) {
    const auto n = static_cast<std::int64_t>(v.size());
    return floats({n}, v);
  };
  for (const char* mode : {"nearest", "linear", "cubic"}) {
    const OneNode node{.op = "Resize", .attributes = {{"mode", std::string(mode)}}};
    const std::vector<std::vector<float>> wrong{{1, 1, 0, 1},      {1, 1, -1, 1}, {1, 1, inf, 1},
                                                {1, 1, nan, 1},    {1, 1, 2},     {1, 1, 1e30f, 1},
                                                {1, 1, 1e8f, 1e8f}};
    for (const auto& values : wrong) {
      const auto [code, message] =
          refusal(node, list(random({1, 1, 4, 4}, 1), Given{}, scales(values)));
      CHECK(code != ErrorCode::kInternal) << mode << ": " << message;
    }
    const std::vector<Ints> sizes{
        {1, 1, -1, 4}, {1, 1, kHuge, 4}, {1, 1, 4}, {1, 1, 1 << 24, 1 << 24}};
    for (const Ints& values : sizes) {
      const auto [code, message] =
          refusal(node, list(random({1, 1, 4, 4}, 1), Given{}, Given{},
                             ints({static_cast<std::int64_t>(values.size())}, values)));
      CHECK(code != ErrorCode::kInternal) << mode << ": " << message;
    }
    const auto [code, message] =
        refusal(node, list(floats({1, 1, 0, 4}, {}), Given{}, Given{}, ints({4}, {1, 1, 2, 4})));
    CHECK(code == ErrorCode::kInvalidArgument) << message;
  }
  const auto attribute = [&](const char* key, kvik::graph::Attribute value) {
    const OneNode node{.op = "Resize", .attributes = {{key, std::move(value)}}};
    const auto [code, message] =
        refusal(node, list(random({1, 1, 4, 4}, 1), Given{}, scales({1, 1, 2, 2})));
    CHECK(code != ErrorCode::kInternal) << key << ": " << message;
  };
  attribute("mode", std::string("area"));
  attribute("nearest_mode", std::string("up"));
  attribute("coordinate_transformation_mode", std::string("polar"));
  attribute("coordinate_transformation_mode", std::string("tf_crop_and_resize"));  // no roi
  attribute("keep_aspect_ratio_policy", std::string("no"));
  attribute("axes", Ints{0, 1, 2, 4});
  attribute("axes", Ints{0, 1, 2, 2});
  attribute("axes", Ints{2, 3});
  attribute("antialias", std::int64_t{1});  // with the mode nearest
}

int main(int argc, char** argv) {
  return run_all(argc, argv);
}
