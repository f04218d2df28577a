// Random tensors and lists of tensors, for tests of single nodes.
#pragma once

#include <utility>
#include <vector>

#include "cpp/check.h"
#include "runtime/one_node.h"

namespace kvik::test {

inline Given random(const Dims& dims, std::uint64_t stream) {
  Random random(stream);
  std::vector<float> values(static_cast<std::size_t>(dims.elements()));
  for (float& v : values) v = random.uniform(-1.0f, 1.0f);
  return floats(dims, values);
}

inline std::vector<Given> list(Given a) {
  std::vector<Given> v;
  v.push_back(std::move(a));
  return v;
}
template <typename... More>
std::vector<Given> list(Given a, More... more) {
  std::vector<Given> v = list(std::move(a));
  (v.push_back(std::move(more)), ...);
  return v;
}

}  // namespace kvik::test
