// What each topic of the extension module provides: one init function, in a file of that name.
#pragma once

#include <nanobind/nanobind.h>

namespace kvik::bindings {

void init_errors(nanobind::module_& module);
void init_tensors(nanobind::module_& module);
void init_attention(nanobind::module_& module);
void init_profile(nanobind::module_& module);
void init_session(nanobind::module_& module);
void init_model(nanobind::module_& module);
void init_sampler(nanobind::module_& module);
void init_generate(nanobind::module_& module);
void init_beam_search(nanobind::module_& module);
void init_machine(nanobind::module_& module);

}  // namespace kvik::bindings
