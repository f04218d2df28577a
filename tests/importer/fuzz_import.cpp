// libFuzzer entry: clang with -fsanitize=fuzzer, see CMakeLists.txt.
#include <cstddef>
#include <cstdint>

#include "graph/graph.h"
#include "kvik/error.h"
#include "onnx/importer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto model = kvik::onnx::import_bytes({reinterpret_cast<const std::byte*>(data), size});
    kvik::graph::verify(model.graph);
    kvik::graph::dump(model.graph);
  } catch (const kvik::Error& error) {
    if (error.code() == kvik::ErrorCode::kInternal) __builtin_trap();
  }
  return 0;
}
