// Which token ids a model takes. `limit` is ModelInfo::token_limit: 0 where it is not known.
#pragma once

#include <cstdint>
#include <string>

namespace kvik::runtime {

inline bool takes_id(std::int64_t id, std::int64_t limit) {
  return id >= 0 && (limit == 0 || id < limit);
}

// For messages: "0 to 49999".
inline std::string id_range(std::int64_t limit) {
  return "0 to " + (limit == 0 ? "2^63-1" : std::to_string(limit - 1));
}

}  // namespace kvik::runtime
