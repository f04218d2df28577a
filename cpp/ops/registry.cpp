#include "ops/families.h"

namespace kvik::ops {

namespace {
std::string key_of(std::string_view domain, std::string_view op) {
  std::string key(domain);
  key += '\0';
  key += op;
  return key;
}

Registry make_registry() {
  Registry all;
  register_unary(all);
  register_binary(all);
  register_compare_logic(all);
  register_where_cast(all);
  register_shape(all);
  register_transpose(all);
  register_expand_tile(all);
  register_concat_split(all);
  register_slice_pad(all);
  register_generators(all);
  register_gather(all);
  register_scatter(all);
  register_reduce(all);
  register_arg_topk(all);
  register_cumulative(all);
  register_norm(all);
  register_softmax(all);
  register_matmul(all);
  register_linear(all);
  register_embedding(all);
  register_attention(all);
  register_rotary(all);
  register_quantize(all);
  register_einsum(all);
  register_recurrent(all);
  register_conv(all);
  register_pool(all);
  register_max_unpool(all);
  register_resize(all);
  register_grid_sample(all);
  register_col2im(all);
  register_integer_products(all);
  return all;
}
}  // namespace

void Registry::add(std::string_view domain, std::string_view op, MakeKernel make) {
  if (!makers_.emplace(key_of(domain, op), make).second) {
    fail(ErrorCode::kInternal, "the operator " + std::string(op) + " is registered twice");
  }
}

MakeKernel Registry::find(std::string_view domain, std::string_view op) const {
  const auto it = makers_.find(key_of(domain == "ai.onnx" ? "" : domain, op));
  return it == makers_.end() ? nullptr : it->second;
}

const Registry& registry() {
  static const Registry all = make_registry();
  return all;
}

}  // namespace kvik::ops
