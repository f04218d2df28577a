// Runs any supported graph as it stands: named tensors in, named tensors out.
//
//   kvik::Session session = kvik::Session::load("model.onnx");
//   const float x[] = {1, 2, 3};
//   const std::int64_t dims[] = {1, 3};
//   const kvik::Feed feeds[] = {{"x", {kvik::DType::kF32, dims, x}}};
//   std::vector<kvik::OwnedTensor> y = session.run(feeds);
//
// A language model that generates token by token is a kvik::Model (kvik/model.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvik/attention.h"
#include "kvik/error.h"
#include "kvik/export.h"
#include "kvik/profile.h"
#include "kvik/tensor.h"
#include "kvik/weights.h"

namespace kvik {

struct Feed {
  std::string_view name;
  TensorView tensor;
};

// Asked now and then during a long call (between the chunks of a prefill, between tokens, before
// every node of a session's graph and every trip of its loops); when it returns true the call
// throws Error(kCancelled). It runs on the calling thread. What it throws passes through to the
// caller. Empty: never asked.
using CancelCheck = std::function<bool()>;

struct SessionOptions {
  int threads = 0;       // the caller's thread included; 0: the CPUs this process may run on
  bool optimize = true;  // false: run the graph exactly as the file spells it, nothing fused
  // Names of inner values of the graph to be offered as outputs too (after the graph's own, in
  // this order). A value that is asked for is never fused away.
  std::vector<std::string> extra_outputs;
  // In memory, of the matrices of linear and recurrent layers and of convolutions; the file keeps
  // its own. Without `optimize` no product is known to be a linear layer, and all stay in fp32.
  WeightType weights = WeightType::kF32;
};

// A loaded graph, ready to run. Movable, not copyable; a moved-from session may only be destroyed
// or assigned to.
//
// Threads: run() may be called from several threads at once; calls queue for the session's thread
// pool where they need it. After fork() the child must load its own session: run() throws
// Error(kInvalidArgument) there.
class KVIK_API Session {
 public:
  // Maps the file; it must not change while the session lives (to replace it, rename another one
  // over it). One that was cut is noticed when run() begins, which then throws kIo; a cut during a
  // run may end the process. Weights in external files are looked for in its own folder only.
  // Throws Error: kIo (cannot be read), kInvalidModel, kUnsupported (lists every operator that is
  // missing), kOutOfMemory.
  static Session load(const std::filesystem::path& path, const SessionOptions& options = {});
  // Copies `bytes`. External data is refused.
  static Session from_bytes(std::span<const std::byte> bytes, const SessionOptions& options = {});

  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  const std::vector<TensorInfo>& inputs() const;  // without those that have a default
  const std::vector<TensorInfo>& outputs() const;
  const std::map<std::string, std::string>& metadata() const;  // the file's metadata_props

  // Runs the graph. Feeds every input by name, in any order. Returns the outputs named in
  // `output_names`, in that order; all of them when it is empty.
  // Throws Error: kInvalidArgument (a feed missing, unknown, or of the wrong dtype or shape; an
  // unknown output; shapes that an operator cannot combine, naming the node), kOutOfMemory,
  // kCancelled, kIo (see load()). The session can be used again after any error.
  std::vector<OwnedTensor> run(std::span<const Feed> feeds,
                               std::span<const std::string> output_names = {},
                               const CancelCheck& cancelled = {}) const;

  // The weights of the attentions in the graph, [layers, batch, heads, queries, keys]: of every
  // Attention, and of every softmax over its last axis whose result a product takes with values,
  // outside of the bodies of control flow. Feeds as for run(); no more of the graph is run than the
  // weights need. Each call prepares that part of the graph anew. The batch is the first dimension
  // of the first input.
  // Throws Error: as run(); kUnsupported (there is no attention; weights that are not float32),
  // kInvalidArgument (a kind or a layer that there is none of).
  std::vector<AttentionWeights> attention(std::span<const Feed> feeds,
                                          const AttentionChoice& choice = {},
                                          const CancelCheck& cancelled = {}) const;

  // Times every node of the runs that begin from now on, forgetting what was recorded before. The
  // time of a control-flow node is that of its bodies. Throws kOutOfMemory.
  void start_profile() const;
  // Stops, and returns what was recorded since start_profile(): empty when it was not started.
  Profile stop_profile() const;

  struct KVIK_HIDDEN Impl;

 private:
  explicit Session(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvik
