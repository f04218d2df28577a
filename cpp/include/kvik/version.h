// Version of the library. The single place where it is written: CMake and the Python package
// read it from here.
#pragma once

#include "kvik/export.h"

#define KVIK_VERSION "0.1.0"

namespace kvik {

// The version of the library that is linked, e.g. "0.1.0".
KVIK_API const char* version() noexcept;

}  // namespace kvik
