// A model of images through the public interface: a convolution, its mean over each image, a layer.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cpp/check.h"
#include "kvik/kvik.h"
#include "runtime/tiny_onnx.h"

namespace {

using namespace kvik;
using kvik::test::Message;
using kvik::test::Random;
using kvik::test::thrown;

constexpr std::int64_t kSide = 5, kMaps = 3, kClasses = 4, kPixels = kSide * kSide;

std::vector<float> random_floats(std::int64_t count, std::uint64_t stream) {
  Random random(stream);
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(random.uniform(-1.0F, 1.0F));
  return values;
}

// y = relu(conv(x, 3 x 3)), mean over the image, times a matrix; x [batch, 1, kSide, kSide].
struct Classifier {
  std::vector<float> filter = random_floats(kMaps * 9, 1);
  std::vector<float> head = random_floats(kMaps * kClasses, 2);

  Model load(const LoadOptions& options = {.threads = 2}) const {
    using namespace kvik::test::onnx_bytes;
    const auto typed = [](const std::string& name, const std::vector<std::int64_t>& dims) {
      Message shape;
      shape.message(1, Message().bytes(2, "batch"));
      for (const std::int64_t dim : dims) {
        shape.message(1, Message().varint(1, static_cast<std::uint64_t>(dim)));
      }
      const Message tensor = Message().varint(1, 1).message(2, shape);
      return Message().bytes(1, name).message(2, Message().message(1, tensor));
    };
    Message graph;
    graph.message(1, node("Conv", {"x", "filter"}, "maps"));
    graph.message(1, node("Relu", {"maps"}, "active"));
    graph.message(1, node("GlobalAveragePool", {"active"}, "means"));
    graph.message(1, node("Flatten", {"means"}, "flat"));
    graph.message(1, node("MatMul", {"flat", "head"}, "logits"));
    graph.bytes(2, "classifier");
    graph.message(5, floats("filter", {kMaps, 1, 3, 3}, filter));
    graph.message(5, floats("head", {kMaps, kClasses}, head));
    graph.message(11, typed("x", {1, kSide, kSide}));
    graph.message(12, typed("logits", {kClasses}));
    const Message model =
        Message().varint(1, 10).message(8, Message().bytes(1, "").varint(2, 20)).message(7, graph);
    const auto* data = reinterpret_cast<const std::byte*>(model.text().data());
    return Model::from_bytes({data, model.text().size()}, options);
  }

  std::array<double, kClasses> logits(const float* x) const {
    std::array<double, kClasses> sums{};
    for (std::int64_t m = 0; m < kMaps; ++m) {
      double mean = 0;
      for (std::int64_t row = 0; row < kSide - 2; ++row) {
        for (std::int64_t column = 0; column < kSide - 2; ++column) {
          double sum = 0;
          for (std::int64_t i = 0; i < 9; ++i) {
            const float pixel = x[(row + i / 3) * kSide + column + i % 3];
            sum += static_cast<double>(pixel) * filter[static_cast<std::size_t>(m * 9 + i)];
          }
          mean += std::max(sum, 0.0) / ((kSide - 2) * (kSide - 2));
        }
      }
      for (std::int64_t c = 0; c < kClasses; ++c) {
        sums[static_cast<std::size_t>(c)] +=
            mean * head[static_cast<std::size_t>(m * kClasses + c)];
      }
    }
    return sums;
  }
};

std::vector<float> encode(const Model& model, const std::vector<float>& pixels) {
  const auto images = static_cast<std::int64_t>(pixels.size()) / kPixels;
  const std::int64_t dims[] = {images, 1, kSide, kSide};
  std::vector<float> rows(static_cast<std::size_t>(images * model.info().encoded_features()));
  model.encode_images({DType::kF32, dims, pixels.data()}, rows);
  return rows;
}

}  // namespace

KVIK_TEST(a_row_for_each_image) {
  const Classifier classifier;
  const Model model = classifier.load();
  CHECK(model.info().reads_images && !model.info().incremental);
  CHECK_EQ(model.info().encoded_features(), kClasses);
  const std::vector<float> pixels = random_floats(6 * kPixels, 3);
  const std::vector<float> rows = encode(model, pixels);
  for (std::size_t image = 0; image < 6; ++image) {
    const auto want = classifier.logits(pixels.data() + image * kPixels);
    for (std::size_t c = 0; c < kClasses; ++c) {
      const double error = std::fabs(static_cast<double>(rows[image * kClasses + c]) - want[c]);
      CHECK(error < 1e-6) << "image " << image << " class " << c << ": " << error;
    }
  }
  CHECK(encode(model, {}).empty());
}

KVIK_TEST(an_image_does_not_depend_on_its_neighbours_or_the_threads) {
  const Classifier classifier;
  const std::vector<float> pixels = random_floats(7 * kPixels, 4);
  const std::vector<float> together = encode(classifier.load(), pixels);
  for (const int threads : {1, 3}) {
    const Model model = classifier.load({.threads = threads});
    for (std::size_t image = 0; image < 7; ++image) {
      const auto* begin = pixels.data() + image * kPixels;
      const std::vector<float> alone = encode(model, {begin, begin + kPixels});
      CHECK(std::memcmp(alone.data(), together.data() + image * kClasses,
                        kClasses * sizeof(float)) == 0)
          << "image " << image << ", " << threads << " threads";
    }
  }
}

KVIK_TEST(images_are_checked) {
  const Model model = Classifier().load();
  const std::vector<float> pixels(2 * kPixels);
  std::vector<float> rows(2 * kClasses);
  const auto refused = [&](const std::vector<std::int64_t>& dims, std::size_t features) {
    return thrown([&] {
      model.encode_images({DType::kF32, dims, pixels.data()}, std::span(rows).first(features));
    });
  };
  for (const auto& text :
       {refused({2, 1, kSide, kSide - 1}, 2 * kClasses), refused({2, 1, kSide}, 2 * kClasses),
        refused({2, 1, kSide, kSide}, 2 * kClasses - 1)}) {
    CHECK(!text.empty()) << "was not refused";
  }
  const std::vector<std::int64_t> words{1, 2};
  CHECK(!thrown([&] { model.encode({{words}}, rows); }).empty());
}

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
