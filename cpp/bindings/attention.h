// The choice of attentions, as Python passes it.
#pragma once

#include <nanobind/nanobind.h>

#include <optional>
#include <string>
#include <vector>

#include "kvik/attention.h"

namespace kvik::bindings {

// `kind`: "self", "cross" or "source"; nothing: all. Throws kInvalidArgument for another.
AttentionChoice attention_choice(const std::optional<std::string>& kind, std::vector<int> layers);

}  // namespace kvik::bindings
