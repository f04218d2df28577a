#include "runtime/image_runner.h"

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "kvik/error.h"

namespace kvik::runtime {

namespace {

constexpr std::size_t kImageRank = 4;  // [images, channels, height, width]

std::array<graph::ValueId, 1> only(graph::ValueId id) {
  return {id};
}

}  // namespace

bool takes_images(const graph::Graph& graph, graph::ValueId output) {
  if (graph.inputs.size() != 1) return false;
  const graph::Value& image = graph.value(graph.inputs.front());
  const graph::Value& rows = graph.value(output);
  return image.dtype == DType::kF32 && image.shape && image.shape->size() == kImageRank &&
         rows.dtype == DType::kF32 && rows.shape && rows.shape->size() == 2 &&
         rows.shape->back().constant().value_or(0) > 0;
}

ImageRunner::ImageRunner(const graph::Graph& graph, const Engine& engine, graph::ValueId output)
    : features_(graph.value(output).shape->back().constant().value_or(0)),
      executor_(graph, engine, {}, only(output)) {}

void ImageRunner::run(const Tensor& images, float* out, const CancelCheck& cancelled,
                      Profiler* profiler) const {
  const std::vector<OwnedTensor> results = executor_.run({&images, 1}, cancelled, profiler);
  const Tensor& rows = results.front().tensor;
  if (rows.elements() != images.dims[0] * features_) {
    throw Error(ErrorCode::kInvalidArgument,
                "the graph gives " + rows.dims.str() + " for " + std::to_string(images.dims[0]) +
                    " images; expected a row of " + std::to_string(features_) + " for each");
  }
  if (rows.elements() > 0) {
    std::memcpy(out, rows.data, static_cast<std::size_t>(rows.elements()) * sizeof(float));
  }
}

}  // namespace kvik::runtime
