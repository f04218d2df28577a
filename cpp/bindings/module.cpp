// kvik._core: the engine as a Python extension. Bindings convert, release the GIL and call.
#include "bindings/bindings.h"
#include "kvik/version.h"

NB_MODULE(_core, module) {
  module.doc() = "The Kvik engine. Use it through the package kvik.";
  module.def("version", &kvik::version, "The version of the engine, e.g. \"0.1.0\".");
  kvik::bindings::init_errors(module);
  kvik::bindings::init_tensors(module);
  kvik::bindings::init_profile(module);
  kvik::bindings::init_attention(module);
  kvik::bindings::init_session(module);
  kvik::bindings::init_model(module);
  kvik::bindings::init_sampler(module);
  kvik::bindings::init_generate(module);
  kvik::bindings::init_beam_search(module);
  kvik::bindings::init_machine(module);
}
