// Ctrl-C during a long call: the engine asks between steps whether to go on.
#pragma once

#include <nanobind/nanobind.h>

#include <chrono>

#include "kvik/session.h"

namespace kvik::bindings {

// A kvik::CancelCheck that runs Python's pending signal handlers and lets what they raise
// (KeyboardInterrupt) pass through the engine. It takes the GIL at most every 20 ms, since another
// Python thread may hold it for that order of time. Handlers run on the main thread only; on other
// threads the check finds nothing.
inline CancelCheck signal_check() {
  using Clock = std::chrono::steady_clock;
  return [next = Clock::time_point{}]() mutable {
    const Clock::time_point now = Clock::now();
    if (now < next) return false;
    next = now + std::chrono::milliseconds(20);
    nanobind::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw nanobind::python_error();
    return false;
  };
}

}  // namespace kvik::bindings
