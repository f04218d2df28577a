// Beam search over texts of one sequence, or over the targets of sources.
#include "kvik/beam_search.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/signals.h"
#include "bindings/tensors.h"

namespace nb = nanobind;

namespace kvik::bindings {
namespace {

// (new tokens, log probability, score, ended)
using PythonHypothesis = std::tuple<std::vector<std::int64_t>, double, double, bool>;

std::vector<std::vector<PythonHypothesis>> search(const Model& model,
                                                  const std::vector<Ids>& prompts,
                                                  const std::optional<std::vector<Ids>>& sources,
                                                  const std::vector<std::int64_t>& max_new_tokens,
                                                  const BeamOptions& options) {
  if (max_new_tokens.size() != prompts.size() || (sources && sources->size() != prompts.size())) {
    throw Error(ErrorCode::kInvalidArgument,
                "as many prompts as sources, and as max_new_tokens, are needed");
  }
  std::vector<std::vector<Hypothesis>> found;
  {
    const CancelCheck check = signal_check();
    nb::gil_scoped_release release;
    std::vector<Sequence> sequences;
    if (sources) {
      std::vector<EncoderInput> inputs;
      for (const Ids& ids : *sources) inputs.push_back({span_of(ids), {}});
      sequences = model.new_sequences(inputs, check);
    } else {
      for (std::size_t i = 0; i < prompts.size(); ++i) sequences.push_back(model.new_sequence());
    }
    std::vector<BeamStart> starts;
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      const auto ids = span_of(prompts[i]);
      starts.push_back({std::move(sequences[i]), {ids.begin(), ids.end()}, max_new_tokens[i]});
    }
    found = beam_search(model, std::move(starts), options, check);
  }
  std::vector<std::vector<PythonHypothesis>> out;
  for (std::vector<Hypothesis>& own : found) {
    auto& list = out.emplace_back();
    for (Hypothesis& one : own) {
      list.emplace_back(std::move(one.tokens), one.log_probability, one.score, one.ended);
    }
  }
  return out;
}

}  // namespace

void init_beam_search(nb::module_& module) {
  module.def(
      "beam_search",
      [](const Model& model, const std::vector<Ids>& prompts,
         const std::optional<std::vector<Ids>>& sources, int beams, int results,
         const std::vector<std::int64_t>& max_new_tokens, double length_penalty,
         std::vector<std::int64_t> end_ids) {
        return search(model, prompts, sources, max_new_tokens,
                      {.beams = beams,
                       .results = results,
                       .length_penalty = length_penalty,
                       .end_ids = std::move(end_ids)});
      },
      nb::arg("model"), nb::arg("prompts"), nb::arg("sources").none(), nb::arg("beams"),
      nb::arg("results"), nb::arg("max_new_tokens"), nb::arg("length_penalty"), nb::arg("end_ids"),
      nb::sig("def beam_search(model: Model, prompts: collections.abc.Sequence["
              "numpy.typing.NDArray[numpy.int64]], sources: collections.abc.Sequence["
              "numpy.typing.NDArray[numpy.int64]] | None, beams: int, results: int, "
              "max_new_tokens: collections.abc.Sequence[int], length_penalty: float, end_ids: "
              "collections.abc.Sequence[int]) -> list[list[tuple[list[int], float, float, bool]]]"),
      "The likeliest continuations of each prompt, given its source if there are any: tokens, log "
      "probability, score, and whether they ended.");
}

}  // namespace kvik::bindings
