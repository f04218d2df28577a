#include "kvik/cache_type.h"

namespace kvik {

const char* cache_type_name(CacheType type) noexcept {
  switch (type) {
    case CacheType::kF32: return "f32";
    case CacheType::kBF16: return "bf16";
    case CacheType::kI8: return "int8";
  }
  return "";
}

std::optional<CacheType> parse_cache_type(std::string_view name) noexcept {
  for (const CacheType type : {CacheType::kF32, CacheType::kBF16, CacheType::kI8}) {
    if (name == cache_type_name(type)) return type;
  }
  return std::nullopt;
}

}  // namespace kvik
