// What the importer notes about a value while its graph is under construction.
#pragma once

#include <cstdint>

namespace kvik::onnx {

enum ValueFlag : std::uint8_t {
  kDefined = 1,  // an input, a constant, or the output of a node that has been emitted
  kUsed = 2,     // by a node that has been imported: it can't become another name any more
  kPinned = 4,   // known outside its scope: a graph's input, an output that a caller gave
};

}  // namespace kvik::onnx
