// In what precision the keys and values of tokens that were seen are kept.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "kvik/export.h"

namespace kvik {

// Chosen when a model is loaded. Attention reads what was stored, for the newest token too, so that
// a row's numbers do not depend on which call stored the ones before it; sums are formed in fp32.
enum class CacheType : std::uint8_t {
  kF32,
  kBF16,  // rounded to nearest: half the memory
  kI8,    // signed bytes with a scale per token and head: a quarter, and 8 bytes of scales
};

KVIK_API const char* cache_type_name(CacheType type) noexcept;  // "f32", "bf16", "int8"
// The type of that name; nullopt for any other.
KVIK_API std::optional<CacheType> parse_cache_type(std::string_view name) noexcept;

}  // namespace kvik
