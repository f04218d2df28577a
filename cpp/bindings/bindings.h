// What each topic of the extension module provides: one init function, in a file of that name.
#pragma once

#include <nanobind/nanobind.h>

namespace kvik::bindings {

void init_errors(nanobind::module_& module);

}  // namespace kvik::bindings
