// Model and Sequence: token ids in, logits out.
#include "kvik/model.h"

#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "bindings/attention.h"
#include "bindings/bindings.h"
#include "bindings/signals.h"
#include "bindings/tensors.h"

namespace nb = nanobind;

namespace kvik::bindings {
namespace {

CacheType cache_type(std::string_view name) {
  if (const auto type = parse_cache_type(name)) return *type;
  throw Error(ErrorCode::kInvalidArgument,
              "cache is '" + std::string(name) + "'; expected 'f32', 'bf16' or 'int8'");
}

Model load_model(const std::filesystem::path& path, int threads, std::string_view weights,
                 std::string_view cache, bool optimize, bool incremental, int max_rows,
                 std::vector<std::string> outputs) {
  const LoadOptions options{threads,           weight_type(weights), cache_type(cache),
                            optimize,          incremental,          max_rows,
                            std::move(outputs)};
  nb::gil_scoped_release release;
  return Model::load(path, options);
}

Model model_from_bytes(const nb::bytes& bytes, int threads, std::string_view weights,
                       std::string_view cache, bool optimize, bool incremental, int max_rows,
                       std::vector<std::string> outputs) {
  const LoadOptions options{threads,           weight_type(weights), cache_type(cache),
                            optimize,          incremental,          max_rows,
                            std::move(outputs)};
  const std::span<const std::byte> view(static_cast<const std::byte*>(bytes.data()), bytes.size());
  nb::gil_scoped_release release;  // bytes are immutable and the caller's reference keeps them
  return Model::from_bytes(view, options);
}

nb::dict metadata(const Model& model) {
  nb::dict out;
  for (const auto& [key, value] : model.metadata()) out[to_str(key)] = to_str(value);
  return out;
}

nb::list explain(const Model& model) {
  nb::list out;
  for (const std::string& line : model.explain()) out.append(to_str(line));
  return out;
}

nb::list to_strs(const std::vector<std::string>& texts) {
  nb::list out;
  for (const std::string& text : texts) out.append(to_str(text));
  return out;
}

// A step as Python passes it: (sequence, ids, which logits).
using PythonStep = std::tuple<Sequence*, Ids, Logits>;

nb::object forward(const Model& model, const std::vector<PythonStep>& python_steps) {
  std::vector<Step> steps;
  steps.reserve(python_steps.size());
  for (const auto& [sequence, ids, logits] : python_steps) {
    steps.push_back({sequence, span_of(ids), logits});
  }
  const auto rows = static_cast<std::size_t>(Model::logits_rows(steps));
  const auto vocab = static_cast<std::size_t>(model.info().vocab_size);
  FloatMatrix logits = empty_matrix(rows, vocab);
  {
    const CancelCheck check = signal_check();
    nb::gil_scoped_release release;
    model.forward(steps, std::span<float>(logits.data(), rows * vocab), check);
  }
  return nb::cast(logits);
}

// A text as Python passes it: ids and their types, or None.
using PythonText = std::tuple<Ids, std::optional<Ids>>;

nb::object encode(const Model& model, const std::vector<PythonText>& texts) {
  std::vector<EncoderInput> inputs;
  inputs.reserve(texts.size());
  for (const auto& [ids, types] : texts) {
    inputs.push_back({span_of(ids), types ? span_of(*types) : std::span<const std::int64_t>()});
  }
  const auto rows = static_cast<std::size_t>(model.encoded_rows(inputs));
  const auto features = static_cast<std::size_t>(model.info().encoded_features());
  FloatMatrix out = empty_matrix(rows, features);
  {
    const CancelCheck check = signal_check();
    nb::gil_scoped_release release;
    model.encode(inputs, std::span<float>(out.data(), rows * features), check);
  }
  return nb::cast(out);
}

std::vector<AttentionWeights> model_attention(const Model& model, const Ids& ids,
                                              const std::optional<Ids>& types,
                                              const std::optional<Ids>& target,
                                              const std::optional<std::string>& kind,
                                              std::vector<int> layers) {
  const AttentionChoice choice = attention_choice(kind, std::move(layers));
  const auto span_or_none = [](const std::optional<Ids>& given) {
    return given ? span_of(*given) : std::span<const std::int64_t>();
  };
  const EncoderInput text{span_of(ids), span_or_none(types)};
  const std::span<const std::int64_t> target_ids = span_or_none(target);
  const CancelCheck check = signal_check();
  nb::gil_scoped_release release;
  return model.attention(text, target_ids, choice, check);
}

nb::object encode_images(const Model& model, const ConstArray& images) {
  if (images.ndim() != 4) {
    throw Error(ErrorCode::kInvalidArgument,
                "images must have 4 dimensions (images, channels, height, width); found " +
                    std::to_string(images.ndim()));
  }
  const std::vector<std::int64_t> dims(images.shape_ptr(), images.shape_ptr() + images.ndim());
  const TensorView view{dtype_of(images.dtype(), "images"), dims, images.data()};
  const auto rows = static_cast<std::size_t>(dims[0]);
  const auto features = static_cast<std::size_t>(model.info().encoded_features());
  FloatMatrix out = empty_matrix(rows, features);
  {
    const CancelCheck check = signal_check();
    nb::gil_scoped_release release;
    model.encode_images(view, std::span<float>(out.data(), rows * features), check);
  }
  return nb::cast(out);
}

std::string dump(const Model& model, GraphStage stage) {
  nb::gil_scoped_release release;
  return model.dump(stage);
}

void init_info(nb::module_& module) {
  nb::class_<ModelInfo>(module, "ModelInfo", "Figures of a loaded model; see kvik.ModelInfo.")
      .def_prop_ro("producer", [](const ModelInfo& self) { return to_str(self.producer); })
      .def_ro("ir_version", &ModelInfo::ir_version)
      .def_ro("opsets", &ModelInfo::opsets)
      .def_ro("inputs", &ModelInfo::inputs)
      .def_ro("outputs", &ModelInfo::outputs)
      .def_ro("parameters", &ModelInfo::parameters)
      .def_ro("weight_bytes", &ModelInfo::weight_bytes)
      .def_ro("packed_bytes", &ModelInfo::packed_bytes)
      .def_ro("activation_bytes", &ModelInfo::activation_bytes)
      .def_ro("state_bytes_per_position", &ModelInfo::state_bytes_per_position)
      .def_ro("recurrent_bytes_per_position", &ModelInfo::recurrent_bytes_per_position)
      .def_ro("ops_before", &ModelInfo::ops_before)
      .def_ro("ops_after", &ModelInfo::ops_after)
      .def_prop_ro("weights", [](const ModelInfo& self) { return weight_type_name(self.weights); })
      .def_prop_ro("cache", [](const ModelInfo& self) { return cache_type_name(self.cache); })
      .def_ro("incremental", &ModelInfo::incremental)
      .def_ro("vocab_size", &ModelInfo::vocab_size)
      .def_ro("token_limit", &ModelInfo::token_limit)
      .def_ro("reads_types", &ModelInfo::reads_types)
      .def_ro("type_limit", &ModelInfo::type_limit)
      .def_prop_ro(
          "encoded",
          [](const ModelInfo& self) {
            nb::list out;
            for (const EncoderOutput& output : self.encoded) {
              out.append(nb::make_tuple(to_str(output.name), output.features));
            }
            return out;
          },
          nb::sig("def encoded(self) -> list[tuple[str, int]]"))
      .def_ro("reads_images", &ModelInfo::reads_images)
      .def_ro("encoded_per_token", &ModelInfo::encoded_per_token)
      .def_ro("context_length", &ModelInfo::context_length)
      .def_ro("two_sequences", &ModelInfo::two_sequences)
      .def_ro("source_limit", &ModelInfo::source_limit)
      .def_ro("source_length", &ModelInfo::source_length)
      .def_ro("threads", &ModelInfo::threads)
      .def_ro("isa", &ModelInfo::isa);
}

void init_graph(nb::module_& module) {
  nb::enum_<GraphStage>(module, "GraphStage", "A graph on its way from the file to the plan.")
      .value("IMPORTED", GraphStage::kImported, "As in the file, in ONNX's newest spelling.")
      .value("OPTIMIZED", GraphStage::kOptimized, "Folded and fused.")
      .value("ROWS", GraphStage::kRows, "On a flat batch of token rows.");
  nb::class_<GraphNode>(module, "GraphNode", "One operator of a graph.")
      .def_prop_ro("op", [](const GraphNode& self) { return to_str(self.op); })
      .def_prop_ro("name", [](const GraphNode& self) { return to_str(self.name); })
      .def_prop_ro(
          "inputs", [](const GraphNode& self) { return to_strs(self.inputs); },
          nb::sig("def inputs(self) -> list[str]"), "Names of values; \"\" where left out.")
      .def_prop_ro(
          "outputs", [](const GraphNode& self) { return to_strs(self.outputs); },
          nb::sig("def outputs(self) -> list[str]"), "Names of values; \"\" where left out.");
}

// (values int8 [rows, columns], scales float32): see IntegerMatrix.
nb::tuple integers(const Model& model, const MatrixInfo& matrix) {
  auto made = std::make_unique<IntegerMatrix>();
  {
    nb::gil_scoped_release release;
    *made = model.integers(matrix);
  }
  const std::size_t groups =
      made->scales.size() / static_cast<std::size_t>(matrix.dims[matrix.channel_axis]);
  const auto rows = static_cast<std::size_t>(matrix.dims[0]);
  const auto columns = static_cast<std::size_t>(matrix.dims[1]);
  IntegerMatrix& data = *made;
  const nb::capsule owner(made.release(),
                          [](void* p) noexcept { delete static_cast<IntegerMatrix*>(p); });
  const bool by_rows = matrix.channel_axis == 0;
  const auto values =
      nb::ndarray<nb::numpy, std::int8_t>(data.values.data(), {rows, columns}, owner);
  const auto scales = nb::ndarray<nb::numpy, float>(
      data.scales.data(), {by_rows ? rows : groups, by_rows ? groups : columns}, owner);
  return nb::make_tuple(values, scales);
}

void init_matrices(nb::module_& module) {
  nb::class_<MatrixInfo>(module, "MatrixInfo",
                         "A matrix of a linear or recurrent layer, or an embedding table.")
      .def_prop_ro(
          "name", [](const MatrixInfo& self) { return to_str(self.name); },
          "Of the value in the file.")
      .def_prop_ro(
          "shape",
          [](const MatrixInfo& self) { return std::make_pair(self.dims[0], self.dims[1]); },
          "As in the file.")
      .def_prop_ro(
          "weights", [](const MatrixInfo& self) { return weight_type_name(self.type); },
          "Its precision in memory.")
      .def_ro("stored", &MatrixInfo::stored, "Whether the file holds integers.")
      .def_ro("multiplied", &MatrixInfo::multiplied,
              "Whether a linear or recurrent layer multiplies by it.")
      .def_ro("looked_up", &MatrixInfo::looked_up, "Whether token ids look its rows up.")
      .def_ro(
          "directions", &MatrixInfo::directions,
          "Of a recurrent layer whose W or R [directions, rows / directions, columns] it is; 0: "
          "of any other.")
      .def_ro("channel_axis", &MatrixInfo::channel_axis,
              "Of the shape: output channels, or tokens of a table.")
      .def_prop_ro(
          "other_use", [](const MatrixInfo& self) { return to_str(self.other_use); },
          "A node that reads it in yet another way, or \"\".");
}

void init_sequence(nb::module_& module) {
  nb::enum_<Logits>(module, "Logits", "Which logits a step computes.")
      .value("NONE", Logits::kNone, "None: only extend the sequence.")
      .value("LAST", Logits::kLast, "Those of the last token.")
      .value("ALL", Logits::kAll, "Those of every token.");
  nb::class_<Sequence>(module, "Sequence", "The state of one token sequence. One thread at a time.")
      .def_prop_ro("length", &Sequence::length, "Tokens so far.")
      .def_prop_ro("state_bytes", &Sequence::state_bytes,
                   "Bytes of keys, values and states, shared ones too.")
      .def("fork", &Sequence::fork, nb::call_guard<nb::gil_scoped_release>(),
           "A second sequence with the same tokens so far; full blocks are shared.")
      .def("truncate", &Sequence::truncate, nb::arg("length"),
           nb::call_guard<nb::gil_scoped_release>(), "Forget the tokens from this position on.");
}

}  // namespace

void init_model(nb::module_& module) {
  init_info(module);
  init_graph(module);
  init_sequence(module);
  init_matrices(module);
  nb::class_<Model>(module, "Model", "A loaded language model; see kvik.Model.")
      .def_static("load", load_model, nb::arg("path"), nb::arg("threads") = 0,
                  nb::arg("weights") = "f32", nb::arg("cache") = "f32", nb::arg("optimize") = true,
                  nb::arg("incremental") = true, nb::arg("max_rows") = LoadOptions{}.max_rows,
                  nb::arg("outputs") = std::vector<std::string>(),
                  nb::sig("def load(path: str | os.PathLike[str], threads: int = 0, "
                          "weights: str = 'f32', cache: str = 'f32', optimize: bool = True, "
                          "incremental: bool = True, max_rows: int = 256, "
                          "outputs: collections.abc.Sequence[str] = ()) -> Model"),
                  "Load a file; threads=0 means one a CPU, no outputs those that fit together.")
      .def_static("from_bytes", model_from_bytes, nb::arg("data"), nb::arg("threads") = 0,
                  nb::arg("weights") = "f32", nb::arg("cache") = "f32", nb::arg("optimize") = true,
                  nb::arg("incremental") = true, nb::arg("max_rows") = LoadOptions{}.max_rows,
                  nb::arg("outputs") = std::vector<std::string>(),
                  "Load a model from memory; it is copied.")
      .def_prop_ro("info", &Model::info, nb::rv_policy::reference_internal)
      .def_prop_ro("metadata", metadata, nb::sig("def metadata(self) -> dict[str, str]"),
                   "The file's metadata_props.")
      .def_prop_ro("explain", explain, nb::sig("def explain(self) -> list[str]"),
                   "What was proved, or where the proof stopped; one line each.")
      .def(
          "dump", [](const Model& self, GraphStage stage) { return to_str(dump(self, stage)); },
          nb::arg("stage"), "A listing, one line a node; \"\" for a stage that does not exist.")
      .def("nodes", &Model::nodes, nb::arg("stage"), "The nodes in execution order.")
      .def("matrices", &Model::matrices,
           "The matrices of linear and recurrent layers and the embedding tables, in the order in "
           "which they run.")
      .def("integers", integers, nb::arg("matrix"),
           nb::sig("def integers(self, matrix: MatrixInfo) -> "
                   "tuple[numpy.typing.NDArray[numpy.int8], numpy.typing.NDArray[numpy.float32]]"),
           "A matrix that is kept as int8 or int4: values [rows, columns] and their scales, of the "
           "same rank: one for each channel (int8), or channel and 32 inputs (int4).")
      .def("new_sequence", &Model::new_sequence, "An empty sequence.")
      .def(
          "new_sequences",
          [](const Model& self, const std::vector<Ids>& sources) {
            std::vector<EncoderInput> inputs;
            for (const Ids& ids : sources) inputs.push_back({span_of(ids), {}});
            const CancelCheck check = signal_check();
            nb::gil_scoped_release release;
            return self.new_sequences(inputs, check);
          },
          nb::arg("sources"),
          nb::sig("def new_sequences(self, sources: collections.abc.Sequence["
                  "numpy.typing.NDArray[numpy.int64]]) -> list[Sequence]"),
          "An empty target for each source; sources are computed together.")
      .def("start_profile", &Model::start_profile, nb::call_guard<nb::gil_scoped_release>(),
           "Time every operator from now on, forgetting what was recorded before.")
      .def("stop_profile", &Model::stop_profile, nb::call_guard<nb::gil_scoped_release>(),
           "Stop, and return what was recorded since start_profile().")
      .def("forward", forward, nb::arg("steps"),
           nb::sig("def forward(self, steps: collections.abc.Sequence[tuple[Sequence, "
                   "numpy.typing.NDArray[numpy.int64], Logits]]) -> "
                   "numpy.typing.NDArray[numpy.float32]"),
           "Append each step's ids to its sequence. Returns the logits that the steps ask for, "
           "float32 [rows, vocab_size], in the order of the steps and of their tokens.")
      .def("encode", encode, nb::arg("texts"),
           nb::sig("def encode(self, texts: collections.abc.Sequence[tuple["
                   "numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int64] | None]]) "
                   "-> numpy.typing.NDArray[numpy.float32]"),
           "Whole texts, each as ids and their types (None: zeros), without padding. Returns "
           "float32 [rows, features]: a row for every token, or one for each text.")
      .def("attention", model_attention, nb::arg("ids"), nb::arg("types") = nb::none(),
           nb::arg("target") = nb::none(), nb::arg("kind") = nb::none(),
           nb::arg("layers") = std::vector<int>(),
           nb::sig("def attention(self, ids: numpy.typing.NDArray[numpy.int64], "
                   "types: numpy.typing.NDArray[numpy.int64] | None = None, "
                   "target: numpy.typing.NDArray[numpy.int64] | None = None, "
                   "kind: str | None = None, layers: collections.abc.Sequence[int] = ()) "
                   "-> list[AttentionWeights]"),
           "The attention weights of a text, or of a source and its target; no layers: all.")
      .def("encode_images", encode_images, nb::arg("images"),
           nb::sig("def encode_images(self, images: numpy.typing.NDArray[numpy.float32]) -> "
                   "numpy.typing.NDArray[numpy.float32]"),
           "Float32 [images, features] of float32 [images, channels, height, width].");
}

}  // namespace kvik::bindings
