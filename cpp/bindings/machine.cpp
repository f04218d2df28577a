// The machine: which kernels run here, and the ceilings that `kvik bench` states.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/roofline.h"
#include "kernels/dispatch.h"

namespace nb = nanobind;

namespace kvik::bindings {
namespace {

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const kernels::KernelTable* table : kernels::available_tables()) {
    names.emplace_back(table->name);
  }
  std::reverse(names.begin(), names.end());
  return names;
}

}  // namespace

void init_machine(nb::module_& module) {
  module.def(
      "active_isa", [] { return kernels::active_table().name; },
      "The kernels in use: the best for this CPU, or what KVIK_ISA names.");
  module.def("available_isas", available_isas,
             "What KVIK_ISA may name on this CPU, slowest first.");
  module.def("read_bandwidth", read_bandwidth, nb::arg("bytes"), nb::arg("threads"),
             nb::arg("seconds") = 0.3, nb::call_guard<nb::gil_scoped_release>(),
             "Bytes per second at which the threads together read a working set of this size.");
  module.def("bf16_peak", bf16_peak, nb::arg("isa"), nb::arg("threads"), nb::arg("seconds") = 0.2,
             nb::call_guard<nb::gil_scoped_release>(),
             "Operations per second on bfloat16 numbers, or in fp32 where an ISA widens them.");
  module.def("dot_peak", dot_peak, nb::arg("isa"), nb::arg("threads"), nb::arg("seconds") = 0.2,
             nb::call_guard<nb::gil_scoped_release>(),
             "Operations per second on bytes, summed in 32 bits, with the instructions of an ISA.");
  module.def("fma_peak", fma_peak, nb::arg("isa"), nb::arg("threads"), nb::arg("seconds") = 0.2,
             nb::call_guard<nb::gil_scoped_release>(),
             "fp32 operations per second that the threads reach together, operands in registers.");
}

}  // namespace kvik::bindings
