// The operator families: each adds its operators to the registry. One file per family.
#pragma once

#include "ops/op.h"

namespace kvik::ops {

void register_unary(Registry& registry);
void register_binary(Registry& registry);
void register_compare_logic(Registry& registry);
void register_where_cast(Registry& registry);
void register_shape(Registry& registry);
void register_transpose(Registry& registry);
void register_expand_tile(Registry& registry);
void register_concat_split(Registry& registry);
void register_slice_pad(Registry& registry);
void register_generators(Registry& registry);
void register_gather(Registry& registry);
void register_scatter(Registry& registry);
void register_reduce(Registry& registry);
void register_arg_topk(Registry& registry);
void register_cumulative(Registry& registry);
void register_norm(Registry& registry);
void register_softmax(Registry& registry);
void register_matmul(Registry& registry);
void register_linear(Registry& registry);
void register_embedding(Registry& registry);
void register_attention(Registry& registry);
void register_rotary(Registry& registry);
void register_quantize(Registry& registry);
void register_einsum(Registry& registry);
void register_recurrent(Registry& registry);
void register_conv(Registry& registry);
void register_pool(Registry& registry);
void register_max_unpool(Registry& registry);
void register_resize(Registry& registry);
void register_grid_sample(Registry& registry);
void register_col2im(Registry& registry);
void register_integer_products(Registry& registry);

}  // namespace kvik::ops
