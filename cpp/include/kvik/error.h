// The one exception type that Kvik throws, and its codes.
//
// The library reports every failure by throwing kvik::Error; it never prints, aborts or exits.
// what() is one line that names what was wrong, where (file, tensor or node), and what to do.
#pragma once

#include <stdexcept>
#include <string>

#include "kvik/export.h"

namespace kvik {

enum class ErrorCode {
  kInvalidArgument,  // the caller passed something impossible: a shape, an id, an option
  kInvalidModel,     // the bytes are not a valid model
  kUnsupported,      // a valid model that needs something Kvik does not have
  kIo,               // a file could not be opened, mapped or read
  kOutOfMemory,      // an allocation failed, or a budget would be exceeded
  kCancelled,        // the caller asked to stop
  kInternal,         // a defect in Kvik: please report it
};

// "invalid argument", "invalid model", ... for messages.
KVIK_API const char* error_code_name(ErrorCode code) noexcept;

class KVIK_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace kvik
