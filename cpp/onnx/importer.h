// From an ONNX file to the graph representation.
//
// Nodes come out in one canonical form, that of the newest opset that Kvik knows, whichever of the
// opsets 7 to 25 they were written in; functions are inlined, constants stay where they are in the
// file. Only what cannot lie is taken over: types and shapes of the main graph's inputs and of
// constants. The types that a file declares for other values are hints and left out: they follow
// from the operators.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "graph/graph.h"
#include "onnx/wire.h"

namespace kvik::onnx {

inline constexpr std::int64_t kMinOpset = 7;
inline constexpr std::int64_t kMaxOpset = 25;
inline constexpr std::int64_t kMaxIrVersion = 14;

struct ImportOptions {
  Limits limits;
  // Whether an operator can be run, asked for canonical nodes ("" is the domain of ONNX). All
  // operators that can't are listed in one error. Empty: every operator is imported.
  std::function<bool(std::string_view domain, std::string_view op)> supported;
  // Where to write the last dimension that the file declares for each output of its main graph, by
  // name, if it is a number. Nothing vouches for it. Null: nowhere.
  std::map<std::string, std::int64_t>* declared_widths = nullptr;
};

// Reads the model. Its constants keep the file, and the files of external data, open (mapped) as
// long as they live. Throws kvik::Error: kIo for a file that can't be had, kInvalidModel for bytes
// that are no valid model, kUnsupported for a valid one that needs more than Kvik has,
// kOutOfMemory when a limit is reached. Messages start with the path.
graph::Model import_file(const std::string& path, const ImportOptions& options = {});

// The same from memory. Constants point into `bytes`: they must outlive the model, unless `owner`
// keeps them alive. External data is refused (kInvalidArgument).
graph::Model import_bytes(Bytes bytes, const ImportOptions& options = {},
                          std::shared_ptr<const void> owner = nullptr);

}  // namespace kvik::onnx
