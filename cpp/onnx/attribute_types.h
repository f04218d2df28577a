// The types that attributes of ONNX operators have, by name.
#pragma once

#include <string_view>

#include "onnx/proto.h"

namespace kvik::onnx {

// The type that an attribute of this name has in every operator of the ONNX domain that has it;
// kUndefined for names that are unknown or mean different things.
AttributeType expected_attribute_type(std::string_view name);

}  // namespace kvik::onnx
