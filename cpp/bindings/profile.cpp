// Profiles of models and sessions.
#include "kvik/profile.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/bindings.h"
#include "bindings/tensors.h"

namespace nb = nanobind;

namespace kvik::bindings {

void init_profile(nb::module_& module) {
  nb::class_<OpProfile>(module, "OpProfile", "One node of the graph that runs, and its time.")
      .def_prop_ro("op", [](const OpProfile& self) { return to_str(self.op); })
      .def_prop_ro("name", [](const OpProfile& self) { return to_str(self.name); })
      .def_ro("shape", &OpProfile::shape)
      .def_ro("precision", &OpProfile::precision)
      .def_ro("calls", &OpProfile::calls)
      .def_ro("seconds", &OpProfile::seconds)
      .def_ro("bytes", &OpProfile::bytes, "Of weights, and of cached keys and values, read.")
      .def_ro("operations", &OpProfile::operations, "Of matrix products; a multiply-add is two.");
  nb::class_<Profile>(module, "Profile", "Where the time of some calls went.")
      .def_ro("calls", &Profile::calls)
      .def_ro("seconds", &Profile::seconds)
      .def_ro("ops", &Profile::ops, "In the order of the graph; those that were called.")
      .def_prop_ro("overhead_seconds", &Profile::overhead_seconds,
                   "What the calls took beside their operators.");
}

}  // namespace kvik::bindings
