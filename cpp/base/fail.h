// Shorthand for throwing kvik::Error.
#pragma once

#include <string>

#include "kvik/error.h"

namespace kvik {

[[noreturn]] inline void fail(ErrorCode code, const std::string& message) {
  throw Error(code, message);
}

// The file is at fault.
[[noreturn]] inline void fail_model(const std::string& message) {
  fail(ErrorCode::kInvalidModel, message);
}

// The caller is at fault.
[[noreturn]] inline void fail_argument(const std::string& message) {
  fail(ErrorCode::kInvalidArgument, message);
}

}  // namespace kvik
