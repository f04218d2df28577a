// kvik::Error becomes the exception class of kvik.errors that belongs to its code.
//
// The classes live in Python, where their bases (ValueError, OSError, ...) and their documentation
// are plain to read and to type-check; C++ looks them up by name when it raises one.
#include <stdexcept>

#include "bindings/bindings.h"
#include "kvik/error.h"

namespace kvik::bindings {
namespace {

const char* class_name(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kInvalidArgument: return "InvalidArgumentError";
    case ErrorCode::kInvalidModel: return "InvalidModelError";
    case ErrorCode::kUnsupported: return "UnsupportedError";
    case ErrorCode::kIo: return "FileError";
    case ErrorCode::kOutOfMemory: return "OutOfMemoryError";
    case ErrorCode::kCancelled: return "CancelledError";
    case ErrorCode::kInternal: return "InternalError";
  }
  return "InternalError";
}

void translate(const std::exception_ptr& exception, void* /*payload*/) {
  try {
    std::rethrow_exception(exception);
  } catch (const Error& error) {
    nanobind::object type =
        nanobind::module_::import_("kvik.errors").attr(class_name(error.code()));
    // Messages quote files, whose strings need not be UTF-8.
    const std::string_view what = error.what();
    const auto size = static_cast<Py_ssize_t>(what.size());
    const auto text = nanobind::steal(PyUnicode_DecodeUTF8(what.data(), size, "backslashreplace"));
    PyErr_SetObject(type.ptr(), text.ptr());
  }
}

// Lets the tests see the translation of every code without a model that fails in every way.
[[noreturn]] void raise_error(int code, const char* message) {
  if (code < 0 || code > static_cast<int>(ErrorCode::kInternal)) {
    throw Error(ErrorCode::kInvalidArgument, "_raise_error: no error has this code");
  }
  throw Error(static_cast<ErrorCode>(code), message);
}

}  // namespace

void init_errors(nanobind::module_& module) {
  nanobind::register_exception_translator(translate, nullptr);
  module.def(
      "_raise_error", [](int code, const char* message) { raise_error(code, message); },
      nanobind::arg("code"), nanobind::arg("message"),
      "Raise the exception of an error code; for tests.");
}

}  // namespace kvik::bindings
