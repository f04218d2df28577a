// In what precision a model's weights are kept in memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "kvik/export.h"

namespace kvik {

// Chosen when a model is loaded. Activations, keys and values stay in fp32 whatever it is; what is
// quantised are the matrices of linear layers, the vocabulary projection among them. Embedding
// tables are read from the mapped file, one row a token, as they are. Small matrices (fewer than
// 32 inputs or 4096 elements) stay in fp32: they cost nothing and often feed norms or positions.
enum class WeightType : std::uint8_t {
  kF32,
  kBF16,  // rounded to nearest; products in fp32
  kI8,    // a scale per output channel; inputs become 8-bit integers row by row, at run time
  kI4,    // a scale per output channel and 32 inputs; inputs as for kI8
};

KVIK_API const char* weight_type_name(WeightType type) noexcept;  // "f32", "bf16", "int8", "int4"
// The type of that name; nullopt for any other.
KVIK_API std::optional<WeightType> parse_weight_type(std::string_view name) noexcept;

}  // namespace kvik
