#include "kvik/weights.h"

namespace kvik {

const char* weight_type_name(WeightType type) noexcept {
  switch (type) {
    case WeightType::kF32: return "f32";
    case WeightType::kBF16: return "bf16";
    case WeightType::kI8: return "int8";
    case WeightType::kI4: return "int4";
  }
  return "";
}

std::optional<WeightType> parse_weight_type(std::string_view name) noexcept {
  for (const WeightType type :
       {WeightType::kF32, WeightType::kBF16, WeightType::kI8, WeightType::kI4}) {
    if (name == weight_type_name(type)) return type;
  }
  return std::nullopt;
}

}  // namespace kvik
