// Attention weights as arrays.
#include "bindings/attention.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <utility>

#include "bindings/bindings.h"
#include "bindings/tensors.h"
#include "kvik/error.h"

namespace nb = nanobind;

namespace kvik::bindings {

AttentionChoice attention_choice(const std::optional<std::string>& kind, std::vector<int> layers) {
  AttentionChoice choice{.layers = std::move(layers)};
  if (!kind) return choice;
  for (const AttentionKind known :
       {AttentionKind::kSelf, AttentionKind::kCross, AttentionKind::kSource}) {
    if (*kind == attention_kind_name(known)) choice.kind = known;
  }
  if (choice.kind) return choice;
  throw Error(ErrorCode::kInvalidArgument,
              "kind is '" + *kind + "'; expected 'self', 'cross' or 'source'");
}

namespace {

nb::str axis_of(const Dimension& dimension) {
  return to_str(dimension.size >= 0 ? std::to_string(dimension.size) : dimension.symbol);
}

}  // namespace

void init_attention(nb::module_& module) {
  nb::class_<AttentionWeights>(module, "AttentionWeights",
                               "The weights of layers of one kind, whose shapes are equal.")
      .def_prop_ro(
          "kind", [](const AttentionWeights& self) { return attention_kind_name(self.kind); },
          "self, cross or source.")
      .def_ro("layers", &AttentionWeights::layers, "The place of each among those of its kind.")
      .def_prop_ro(
          "names",
          [](const AttentionWeights& self) {
            nb::list out;
            for (const std::string& name : self.names) out.append(to_str(name));
            return out;
          },
          nb::sig("def names(self) -> list[str]"), "The name of each in the graph.")
      .def_prop_ro(
          "weights",
          [](const AttentionWeights& self) { return to_numpy(self.weights, "attention weights"); },
          nb::sig("def weights(self) -> numpy.typing.NDArray[numpy.float32]"),
          "Float32 [layers, heads, queries, keys]; of a session [layers, batch, heads, ...].")
      .def_prop_ro(
          "queries", [](const AttentionWeights& self) { return axis_of(self.queries); },
          "Of a session: the dimension of the queries, a number or an expression.")
      .def_prop_ro(
          "keys", [](const AttentionWeights& self) { return axis_of(self.keys); },
          "The same of the keys.");
}

}  // namespace kvik::bindings
