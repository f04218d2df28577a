// Runs a graph that gives a row of numbers for each image: a ViT, a convolutional network.
//
// Such a graph runs as it stands, batch for batch; there is nothing to prove, since its kernels
// compute each row of a product, and each image of a convolution, alone.
#pragma once

#include <cstdint>

#include "graph/graph.h"
#include "runtime/executor.h"

namespace kvik::runtime {

// Whether the graph takes images, float32 of rank 4, and nothing else, and `output` is float32
// [images, features] of a known number of features.
bool takes_images(const graph::Graph& graph, graph::ValueId output);

class ImageRunner {
 public:
  // takes_images(graph, output) must hold. The graph must outlive the runner.
  ImageRunner(const graph::Graph& graph, const Engine& engine, graph::ValueId output);

  std::int64_t features() const { return features_; }
  std::vector<OpProfile> profiled_ops() const { return executor_.profiled_ops(); }

  // Of images float32 [images, channels, height, width], contiguous: float32 [images, features].
  // Throws kInvalidArgument when their size is not the graph's, and else as the executor.
  void run(const Tensor& images, float* out, const CancelCheck& cancelled,
           Profiler* profiler) const;

 private:
  std::int64_t features_ = 0;
  GraphExecutor executor_;
};

}  // namespace kvik::runtime
