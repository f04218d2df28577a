// SHA-1 (FIPS 180-4), which ONNX prescribes for checksums of external data. Not for security.
#pragma once

#include <string>

#include "onnx/wire.h"

namespace kvik::onnx {

// The digest as 40 lower-case hexadecimal digits.
std::string sha1_hex(Bytes bytes);

}  // namespace kvik::onnx
