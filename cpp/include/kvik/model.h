// A model: token ids in, logits out, with the sequence state kept by the engine; or whole texts or
// images in, a row for each out.
//
//   kvik::Model model = kvik::Model::load("model.onnx");
//   kvik::Sequence sequence = model.new_sequence();
//   std::vector<float> logits(model.info().vocab_size);
//   model.forward({{&sequence, prompt}}, logits);         // prefill; the last token's logits
//   model.forward({{&sequence, {&next, 1}}}, logits);     // decode one token
//
// generate() (kvik/generate.h) does this loop, with sampling.
//
// When the engine has proved that the graph can be run one token row at a time ("incremental"),
// each token is computed once and the sequence holds its keys and values, and the states of
// recurrent layers after it. Any other graph that
// maps ids to logits runs all the same, recomputing the whole sequence on each call; explain()
// says which, and why.
//
// A model whose tokens read later ones (BERT), or that gives one row for a whole text, encodes:
//
//   std::vector<float> rows(model.encoded_rows({{ids}}) * model.info().encoded_features());
//   model.encode({{ids}}, rows);
//
// A model of images (a ViT, a convolutional network) gives one row for each:
//
//   std::vector<float> rows(images * model.info().encoded_features());
//   const std::int64_t dims[] = {images, channels, height, width};
//   model.encode_images({DType::kF32, dims, pixels}, rows);
//
// A model of two sequences (a translator) computes what depends on the source alone once, when the
// sequence is made, and then runs its target like any other:
//
//   std::vector<kvik::Sequence> targets = model.new_sequences({{source_ids}});
//
// For one file, one precision and one ISA the logits of a token are bitwise the same whatever the
// number of threads, the sequences that share the call, and how the tokens before it were split
// into calls. Nothing is padded, so padding cannot change a result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvik/attention.h"
#include "kvik/cache_type.h"
#include "kvik/error.h"
#include "kvik/export.h"
#include "kvik/profile.h"
#include "kvik/session.h"
#include "kvik/weights.h"

namespace kvik {

struct LoadOptions {
  int threads = 0;  // the caller's thread included; 0: the CPUs this process may run on
  WeightType weights = WeightType::kF32;  // in memory; the file keeps its own
  // Of keys and values; states of recurrent layers are float32. A model that recomputes has none.
  CacheType cache = CacheType::kF32;
  bool optimize = true;     // false: nothing is fused, and all weights are fp32 (slower; for
                            // comparing). Numbers may differ in the last bits.
  bool incremental = true;  // false: always recompute the whole sequence (for comparing)
  // Token rows that are computed at once; a longer prefill is cut into chunks of this size. It
  // sets the size of the activations and never the numbers. A text that is encoded is never cut:
  // one that is longer makes the activations grow. 1 .. 65536.
  int max_rows = 256;
  // Of a model that encodes: the outputs that encode() gives, side by side; none: start_logits and
  // end_logits where there are both, else "logits", else the first of floats that can be computed
  // by sequence.
  std::vector<std::string> outputs;
};

// One of the outputs that encode() gives.
struct EncoderOutput {
  std::string name;           // as in the file
  std::int64_t features = 0;  // elements in a row
};

// How often an operator occurs: ("LayerNormalization", 25). Domains other than ONNX's own are
// part of the name ("kvik.RowAttention").
using OpCounts = std::vector<std::pair<std::string, std::int64_t>>;

struct ModelInfo {
  std::string producer;  // "pytorch 2.13.0"
  std::int64_t ir_version = 0;
  std::map<std::string, std::int64_t> opsets;  // by domain, "" for ONNX
  std::vector<TensorInfo> inputs;
  std::vector<TensorInfo> outputs;

  std::int64_t parameters = 0;        // elements of the weights in the file
  std::int64_t weight_bytes = 0;      // the same in bytes, as stored
  std::int64_t packed_bytes = 0;      // weights packed for this CPU and other constants, in memory
  std::int64_t activation_bytes = 0;  // the arena, for max_rows rows
  // Keys, values and states of recurrent layers that one token adds to a sequence.
  std::int64_t state_bytes_per_position = 0;
  // Of these, the states: float32 in any cache, and a token reads the last alone.
  std::int64_t recurrent_bytes_per_position = 0;

  OpCounts ops_before;  // of the graph in the file, most frequent first
  OpCounts ops_after;   // of the graph that runs

  WeightType weights = WeightType::kF32;
  CacheType cache = CacheType::kF32;
  bool incremental = false;
  std::int64_t vocab_size = 0;   // logits a row
  std::int64_t token_limit = 0;  // ids below this are accepted; 0: not known
  bool reads_types = false;      // encode() reads token types
  std::int64_t type_limit = 0;   // the same for token types
  // What encode() or encode_images() gives; empty: the model does not encode.
  std::vector<EncoderOutput> encoded;
  bool reads_images = false;               // encode_images() instead of encode()
  bool encoded_per_token = false;          // a row for every token; else one row for each text
  std::int64_t encoded_features() const {  // elements in a row of encode()
    std::int64_t sum = 0;
    for (const EncoderOutput& output : encoded) sum += output.features;
    return sum;
  }
  std::int64_t context_length = 0;  // positions a sequence may have; 0: not limited
  bool two_sequences = false;       // (source ids, target ids) -> logits of the target
  std::int64_t source_limit = 0;    // the same for ids of a source
  std::int64_t source_length = 0;   // tokens that a source may have; 0: not limited
  int threads = 1;
  std::string isa;  // kernels in use: "avx512", ...
};

// A graph on its way from the file to the plan.
enum class GraphStage : std::uint8_t {
  kImported,   // as in the file, in ONNX's newest spelling
  kOptimized,  // folded and fused
  kRows,       // on a flat batch of token rows; absent when that was not proved
};

struct GraphNode {
  std::string op;                   // "Gemm", "kvik.RowAttention"
  std::string name;                 // as in the file
  std::vector<std::string> inputs;  // names of values; empty where left out. Weights included.
  std::vector<std::string> outputs;
};

class Model;
class Generator;

// The state of one token sequence: its length, the keys and values of its tokens, and the states of
// recurrent layers after each of them. A handle:
// movable, not copyable (use fork()); it keeps the model's internals alive. Destroying it returns
// its memory to the model for the next sequence.
//
// Threads: one sequence is used by one thread at a time; different sequences, also forks of one
// another, by any number.
class KVIK_API Sequence {
 public:
  Sequence();  // empty handle; assign a sequence to it before use
  Sequence(Sequence&&) noexcept;
  Sequence& operator=(Sequence&&) noexcept;
  ~Sequence();

  bool valid() const noexcept;           // false for an empty handle
  std::int64_t length() const noexcept;  // tokens so far

  // A second sequence with the same tokens so far. Full blocks of 64 positions are shared by
  // reference; the last, partial one is copied when either side writes to it.
  Sequence fork() const;
  // Forgets the tokens from position `length` on. Throws kInvalidArgument when it is negative or
  // larger than length().
  void truncate(std::int64_t length);
  // Bytes of keys, values and states that this sequence refers to, shared ones included.
  std::int64_t state_bytes() const noexcept;

  struct KVIK_HIDDEN Impl;

 private:
  friend class Model;
  explicit Sequence(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

enum class Logits : std::uint8_t {
  kNone,  // only extend the sequence
  kLast,  // of the last token
  kAll,   // of every token
};

// Tokens to append to a sequence. Borrowed: sequence and tokens must outlive the call.
struct Step {
  Sequence* sequence = nullptr;
  std::span<const std::int64_t> tokens;  // at least one
  Logits logits = Logits::kLast;
};

// A text for encode(), or a source. Borrowed: ids and types must outlive the call.
struct EncoderInput {
  std::span<const std::int64_t> tokens;  // at least one
  std::span<const std::int64_t> types;   // token_type_ids, as many; empty: zeros
};

// A loaded model. Movable, not copyable; a moved-from model may only be destroyed or assigned to.
//
// Threads: every member may be called from several threads at once, with different sequences. The
// model has one arena and one thread pool, so calls of forward() run one after the other; to use
// several cores, put several sequences into one call. After fork() the child must load its own
// model: forward() throws Error(kInvalidArgument) there.
class KVIK_API Model {
 public:
  // Maps the file; it must not change while the model lives (to replace it, rename another one over
  // it). One that was cut is noticed when a call begins, forward() and dump() then throw kIo; a cut
  // during a call may end the process. Weights in external files are looked for in the file's own
  // folder only.
  // Throws Error: kIo (cannot be read), kInvalidModel (also a kvik.context_length in the metadata
  // that is no number from 1 on), kUnsupported (lists every operator that is missing; the graph
  // does not map token ids to logits; a kvik.format of the metadata that is not 1),
  // kInvalidArgument (options), kOutOfMemory.
  static Model load(const std::filesystem::path& path, const LoadOptions& options = {});
  // Copies `bytes`. External data is refused.
  static Model from_bytes(std::span<const std::byte> bytes, const LoadOptions& options = {});

  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const ModelInfo& info() const noexcept;
  // The file's metadata_props; what generation needs is under "kvik.*" keys.
  const std::map<std::string, std::string>& metadata() const noexcept;
  // What was proved about the graph, or where the proof stopped; one line each.
  const std::vector<std::string>& explain() const noexcept;
  bool incremental() const noexcept { return info().incremental; }

  // A listing that a human can read, one line a node; "" for a stage that does not exist.
  std::string dump(GraphStage stage) const;
  // The same for programs. Nodes in execution order.
  std::vector<GraphNode> nodes(GraphStage stage) const;

  // The matrices of linear and recurrent layers and the embedding tables, in the order in which
  // they run.
  std::vector<MatrixInfo> matrices() const;
  // The integers of one whose type is kI8 or kI4, and that has no other_use; else throws
  // Error(kInvalidArgument). Also kIo, see load().
  IntegerMatrix integers(const MatrixInfo& matrix) const;

  // Of a model of one sequence; throws Error(kInvalidArgument) for others.
  Sequence new_sequence() const;
  // Of a model of two sequences: an empty target for each source. The sources are computed
  // together, each as it would be alone, and kept for as long as a target of theirs, or a fork of
  // it, lives. Throws Error: kInvalidArgument (a model of one sequence, no tokens, an id beyond
  // source_limit, a source longer than source_length, types), kOutOfMemory, kCancelled, kIo (see
  // load()).
  std::vector<Sequence> new_sequences(std::span<const EncoderInput> sources,
                                      const CancelCheck& cancelled = {}) const;
  std::vector<Sequence> new_sequences(std::initializer_list<EncoderInput> sources,
                                      const CancelCheck& cancelled = {}) const {
    return new_sequences(std::span<const EncoderInput>(sources.begin(), sources.size()), cancelled);
  }

  // Appends each step's tokens to its sequence and computes the logits that the steps ask for.
  // The steps may have any number of tokens each; nothing is padded. A sequence may occur once.
  //
  // `logits` receives float32 [logits_rows(steps), vocab_size], in the order of the steps and,
  // within a step, of its tokens. Its size must be exactly that.
  //
  // Throws Error: kInvalidArgument (a model that gives no logits for tokens, a token id
  // beyond token_limit, a sequence that would grow
  // beyond context_length, a wrong buffer size, no tokens, a sequence of another model or named
  // twice), kOutOfMemory, kCancelled, kIo (see load()). After an error every sequence is as it was
  // before the call, and model and sequences can be used again; the contents of `logits` are
  // unspecified.
  //
  // A decode step (a call on an incremental model that needs no further block of the cache)
  // allocates nothing.
  void forward(std::span<const Step> steps, std::span<float> logits,
               const CancelCheck& cancelled = {}) const;
  void forward(std::initializer_list<Step> steps, std::span<float> logits,
               const CancelCheck& cancelled = {}) const {
    forward(std::span<const Step>(steps.begin(), steps.size()), logits, cancelled);
  }
  // Rows of logits that the steps ask for.
  static std::int64_t logits_rows(std::span<const Step> steps) noexcept;

  // Computes the outputs of whole texts, each by itself; nothing is padded.
  //
  // `out` receives float32 [encoded_rows(inputs), info().encoded_features()], in the order of the
  // texts and, where there is a row for every token, of their tokens. Several outputs lie side by
  // side in a row, in the order of info().encoded.
  //
  // Throws Error: kInvalidArgument (a model that does not encode, an id or type beyond the limits,
  // a text longer than context_length, no tokens, a wrong number of types, types that the model
  // does not read, a wrong buffer size), kOutOfMemory, kCancelled, kIo (see load()).
  void encode(std::span<const EncoderInput> inputs, std::span<float> out,
              const CancelCheck& cancelled = {}) const;
  void encode(std::initializer_list<EncoderInput> inputs, std::span<float> out,
              const CancelCheck& cancelled = {}) const {
    encode(std::span<const EncoderInput>(inputs.begin(), inputs.size()), out, cancelled);
  }
  std::int64_t encoded_rows(std::span<const EncoderInput> inputs) const noexcept;
  std::int64_t encoded_rows(std::initializer_list<EncoderInput> inputs) const noexcept {
    return encoded_rows(std::span<const EncoderInput>(inputs.begin(), inputs.size()));
  }

  // How much each token counted for each other one, in every layer and head: the weights that
  // forward() and encode() use for the same tokens. They are written down as the tokens are
  // computed anew, in calls of this member alone; no sequence is changed.
  //
  // `text`: that of a model of one sequence, or the source. `target`: of a model of two sequences
  // the ids of its target, from the one that it begins with; else empty. The weights have the kinds
  // kSelf, kCross, kSource in this order; layers of different shapes are apart. For one file,
  // precision and ISA they are bitwise the same whatever the threads and max_rows.
  //
  // Throws Error: kUnsupported (the model has no attention), kInvalidArgument (as forward() and
  // encode(); a kind or a layer that the model has not; a target that is missing, or too much),
  // kOutOfMemory (also for more than 8 GiB of weights), kCancelled, kIo (see load()).
  std::vector<AttentionWeights> attention(const EncoderInput& text,
                                          std::span<const std::int64_t> target = {},
                                          const AttentionChoice& choice = {},
                                          const CancelCheck& cancelled = {}) const;

  // Of a model of images, the rows of a batch: `images` are float32 [images, channels, height,
  // width], normalised as the model expects, and `out` receives float32
  // [images, info().encoded_features()]. An image's row does not depend on the others.
  //
  // Throws Error: kInvalidArgument (a model that reads no images, images of another type or size
  // than info().inputs says, a wrong buffer size), kOutOfMemory, kCancelled, kIo (see load()).
  void encode_images(const TensorView& images, std::span<float> out,
                     const CancelCheck& cancelled = {}) const;

  // Times every operator of the calls of forward(), encode() and encode_images() from now on (those
  // that generate() makes are among them), forgetting what was recorded before. Throws
  // kOutOfMemory.
  void start_profile() const;
  // Stops, and returns what was recorded since start_profile(): empty when it was not started.
  Profile stop_profile() const;

  struct KVIK_HIDDEN Impl;

 private:
  friend class Generator;     // keeps the model alive
  friend class ModelThreads;  // lends its threads
  explicit Model(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace kvik
