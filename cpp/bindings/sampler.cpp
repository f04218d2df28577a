// Sampler: a row of logits in, a token out.
#include "kvik/sampler.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/tensors.h"

namespace nb = nanobind;

namespace kvik::bindings {
namespace {

using Bias = std::vector<std::pair<std::int64_t, double>>;

}  // namespace

void init_sampler(nb::module_& module) {
  const SamplerOptions defaults;
  nb::class_<SamplerOptions>(module, "SamplerOptions",
                             "How to choose the next token; see kvik.Model.generate.")
      .def(
          "__init__",
          [](SamplerOptions* self, double temperature, std::int64_t top_k, double top_p,
             double min_p, double repetition_penalty, const Bias& logit_bias, std::uint64_t seed) {
            new (self) SamplerOptions{temperature,        top_k,      top_p, min_p,
                                      repetition_penalty, logit_bias, seed};
          },
          nb::kw_only(), nb::arg("temperature") = defaults.temperature,
          nb::arg("top_k") = defaults.top_k, nb::arg("top_p") = defaults.top_p,
          nb::arg("min_p") = defaults.min_p,
          nb::arg("repetition_penalty") = defaults.repetition_penalty,
          nb::arg("logit_bias") = nb::list(), nb::arg("seed") = defaults.seed,
          nb::sig("def __init__(self, *, temperature: float = 0.0, top_k: int = 0, "
                  "top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0, "
                  "logit_bias: collections.abc.Sequence[tuple[int, float]] = ..., "
                  "seed: int = 0) -> None"))
      .def_ro("temperature", &SamplerOptions::temperature)
      .def_ro("top_k", &SamplerOptions::top_k)
      .def_ro("top_p", &SamplerOptions::top_p)
      .def_ro("min_p", &SamplerOptions::min_p)
      .def_ro("repetition_penalty", &SamplerOptions::repetition_penalty)
      .def_ro("logit_bias", &SamplerOptions::logit_bias)
      .def_ro("seed", &SamplerOptions::seed);

  nb::class_<Sampler>(module, "Sampler", "The sampler of one sequence. One thread at a time.")
      .def(nb::init<const SamplerOptions&, std::int64_t>(), nb::arg("options"),
           nb::arg("vocab_size"))
      .def(
          "observe", [](Sampler& self, const Ids& tokens) { self.observe(span_of(tokens)); },
          nb::arg("tokens"), "Count tokens that were not drawn here, for the repetition penalty.")
      .def(
          "sample",
          [](Sampler& self, const Floats& logits) {
            return self.sample(std::span<const float>(logits.data(), logits.size()));
          },
          nb::arg("logits"), "Draw the next token from float32 logits [vocab_size].")
      .def_prop_ro("steps", &Sampler::steps, "Tokens drawn so far.");
}

}  // namespace kvik::bindings
