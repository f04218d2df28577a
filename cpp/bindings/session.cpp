// Session: any supported graph, named arrays in and out.
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/attention.h"
#include "bindings/bindings.h"
#include "bindings/signals.h"
#include "bindings/tensors.h"
#include "kvik/session.h"

namespace nb = nanobind;

namespace kvik::bindings {
namespace {

// Session is movable only; the GIL is released while it loads.
Session load_session(const std::filesystem::path& path, int threads, bool optimize,
                     const std::vector<std::string>& extra_outputs, std::string_view weights) {
  const SessionOptions options{threads, optimize, extra_outputs, weight_type(weights)};
  nb::gil_scoped_release release;
  return Session::load(path, options);
}

Session session_from_bytes(const nb::bytes& bytes, int threads, bool optimize,
                           const std::vector<std::string>& extra_outputs,
                           std::string_view weights) {
  const SessionOptions options{threads, optimize, extra_outputs, weight_type(weights)};
  const std::span<const std::byte> view(static_cast<const std::byte*>(bytes.data()), bytes.size());
  nb::gil_scoped_release release;  // bytes are immutable and the caller's reference keeps them
  return Session::from_bytes(view, options);
}

using NamedArray = std::pair<std::string, ConstArray>;

struct BorrowedFeeds {
  std::vector<std::vector<std::int64_t>> dims;  // what the views' dims point into
  std::vector<Feed> feeds;
};

BorrowedFeeds borrow(const std::vector<NamedArray>& arrays) {
  BorrowedFeeds borrowed;
  borrowed.dims.reserve(arrays.size());
  for (const auto& [name, array] : arrays) {
    const DType dtype = dtype_of(array.dtype(), "input '" + name + "'");
    borrowed.dims.emplace_back(array.shape_ptr(), array.shape_ptr() + array.ndim());
    borrowed.feeds.push_back({name, {dtype, borrowed.dims.back(), array.data()}});
  }
  return borrowed;
}

nb::dict session_metadata(const Session& session) {
  nb::dict out;
  for (const auto& [key, value] : session.metadata()) out[to_str(key)] = to_str(value);
  return out;
}

nb::list run(const Session& session, const std::vector<std::string>& output_names,
             const std::vector<NamedArray>& arrays) {
  const BorrowedFeeds borrowed = borrow(arrays);
  std::vector<OwnedTensor> results;
  {
    const CancelCheck check = signal_check();
    nb::gil_scoped_release release;
    results = session.run(borrowed.feeds, output_names, check);
  }
  nb::list out;
  for (std::size_t i = 0; i < results.size(); ++i) {
    const std::string& name = output_names.empty() ? session.outputs()[i].name : output_names[i];
    out.append(to_numpy(results[i], name));
  }
  return out;
}

std::vector<AttentionWeights> session_attention(const Session& session,
                                                const std::vector<NamedArray>& arrays,
                                                const std::optional<std::string>& kind,
                                                std::vector<int> layers) {
  const AttentionChoice choice = attention_choice(kind, std::move(layers));
  const BorrowedFeeds borrowed = borrow(arrays);
  const CancelCheck check = signal_check();
  nb::gil_scoped_release release;
  return session.attention(borrowed.feeds, choice, check);
}

}  // namespace

void init_session(nb::module_& module) {
  nb::class_<Session>(module, "Session", "A loaded graph; see kvik.InferenceSession.")
      .def_static("load", load_session, nb::arg("path"), nb::arg("threads") = 0,
                  nb::arg("optimize") = true, nb::arg("extra_outputs") = nb::list(),
                  nb::arg("weights") = "f32",
                  nb::sig("def load(path: str | os.PathLike[str], threads: int = 0, "
                          "optimize: bool = True, "
                          "extra_outputs: collections.abc.Sequence[str] = [], "
                          "weights: str = 'f32') -> Session"),
                  "Load a file; threads=0 means one a CPU.")
      .def_static("from_bytes", session_from_bytes, nb::arg("data"), nb::arg("threads") = 0,
                  nb::arg("optimize") = true, nb::arg("extra_outputs") = nb::list(),
                  nb::arg("weights") = "f32", "Load a model from memory; it is copied.")
      .def_prop_ro("inputs", &Session::inputs, "Inputs without a default, in the file's order.")
      .def_prop_ro("outputs", &Session::outputs, "Outputs in the file's order, extra ones last.")
      .def_prop_ro("metadata", session_metadata, nb::sig("def metadata(self) -> dict[str, str]"),
                   "The file's metadata_props.")
      .def("start_profile", &Session::start_profile, nb::call_guard<nb::gil_scoped_release>(),
           "Time every node from now on, forgetting what was recorded before.")
      .def("stop_profile", &Session::stop_profile, nb::call_guard<nb::gil_scoped_release>(),
           "Stop, and return what was recorded since start_profile().")
      .def("run", run, nb::arg("output_names"), nb::arg("feeds"),
           nb::sig("def run(self, output_names: collections.abc.Sequence[str], feeds: "
                   "collections.abc.Sequence[tuple[str, numpy.typing.NDArray[typing.Any]]]) -> "
                   "list[numpy.typing.NDArray[typing.Any]]"),
           "Run the graph on C-contiguous arrays, which are not copied. Results own their memory.")
      .def("attention", session_attention, nb::arg("feeds"), nb::arg("kind") = nb::none(),
           nb::arg("layers") = std::vector<int>(),
           nb::sig("def attention(self, feeds: collections.abc.Sequence[tuple[str, "
                   "numpy.typing.NDArray[typing.Any]]], kind: str | None = None, "
                   "layers: collections.abc.Sequence[int] = ()) -> list[AttentionWeights]"),
           "The weights of the attentions in the graph; no layers: all.");
}

}  // namespace kvik::bindings
