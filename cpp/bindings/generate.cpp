// Generator: prompts in, new tokens out, one step at a time.
#include "kvik/generate.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/signals.h"

namespace nb = nanobind;

namespace kvik::bindings {
namespace {

std::vector<GenerateEvent> step(Generator& generator) {
  const CancelCheck check = signal_check();
  nb::gil_scoped_release release;
  const std::span<const GenerateEvent> events = generator.step(check);
  return {events.begin(), events.end()};  // the generator's own are valid until the next step only
}

// None while the request goes on.
nb::object reason_to_python(const GenerateEvent& event) {
  if (!event.finished) return nb::none();
  return nb::str(finish_reason_name(event.reason));
}

}  // namespace

void init_generate(nb::module_& module) {
  nb::class_<GenerateRequest>(module, "GenerateRequest", "One prompt and how to continue it.")
      .def(
          "__init__",
          [](GenerateRequest* self, std::vector<std::int64_t> prompt, std::int64_t max_new_tokens,
             const SamplerOptions& sampler, std::vector<std::int64_t> stop_ids) {
            new (self)
                GenerateRequest{std::move(prompt), max_new_tokens, sampler, std::move(stop_ids)};
          },
          nb::arg("prompt"), nb::arg("max_new_tokens"), nb::arg("sampler"), nb::arg("stop_ids"))
      .def_ro("prompt", &GenerateRequest::prompt)
      .def_ro("max_new_tokens", &GenerateRequest::max_new_tokens)
      .def_ro("sampler", &GenerateRequest::sampler)
      .def_ro("stop_ids", &GenerateRequest::stop_ids);

  nb::class_<GenerateEvent>(module, "GenerateEvent",
                            "A token that was just drawn, or the end of a request.")
      .def_ro("request", &GenerateEvent::request, "Index of the request.")
      .def_ro("token", &GenerateEvent::token, "The new token; -1: none, the request has ended.")
      .def_prop_ro("reason", reason_to_python, nb::sig("def reason(self) -> str | None"),
                   "Why the request has ended: \"length\", \"stop_id\", \"context\" or "
                   "\"stopped\"; None while it goes on.");

  nb::class_<Generator>(
      module, "Generator",
      "Generation one step at a time. One thread at a time; keeps its model alive.")
      .def(nb::init<const Model&, std::vector<GenerateRequest>>(), nb::arg("model"),
           nb::arg("requests"))
      .def_prop_ro("done", &Generator::done, "Whether every request has ended.")
      .def("step", step,
           "Draw one token for every request that still runs. Runs Python's signal handlers now "
           "and then; what they raise comes through, and step() may be called again.")
      .def("stop", &Generator::stop, nb::arg("request"), "End a request; it keeps its tokens.");
}

}  // namespace kvik::bindings
