#include "ops/attention_plan.h"

#include <cmath>

#include "ops/support.h"

namespace kvik::ops {

AttentionAttributes parse_attention(const graph::Node& node) {
  AttentionAttributes a;
  a.causal = node.int_attr("is_causal", 0) != 0;
  a.q_heads = node.int_attr("q_num_heads", 0);
  a.kv_heads = node.int_attr("kv_num_heads", 0);
  a.scale = node.float_attr("scale", 0.0f);
  a.softcap = node.float_attr("softcap", 0.0f);
  a.left_window = node.int_attr("left_window_size", -1);
  a.right_window = node.int_attr("right_window_size", -1);
  a.scores_mode = node.int_attr("qk_matmul_output_mode", 0);
  const auto refuse = [](const std::string& what) { fail(ErrorCode::kInvalidModel, what); };
  if (a.q_heads < 0 || a.kv_heads < 0) refuse("a negative number of heads");
  if (a.softcap < 0.0f || std::isnan(a.softcap)) refuse("attribute softcap is negative");
  if (std::isnan(a.scale)) refuse("attribute scale is not a number");
  if (a.left_window < -1 || a.right_window < -1) refuse("a window smaller than -1");
  if (a.scores_mode < 0 || a.scores_mode > 3) {
    refuse("attribute qk_matmul_output_mode is " + std::to_string(a.scores_mode) +
           "; expected 0, 1, 2 or 3");
  }
  return a;
}

namespace {

// One of Q, K, V with its sizes taken apart.
struct Heads {
  std::int64_t batch = 0, heads = 0, length = 0, width = 0;
  HeadView view;
};

Heads split_heads(const Tensor& t, std::int64_t heads, const char* name) {
  Heads h;
  h.view.data = t.data;
  h.batch = t.dims[0];
  if (t.dims.rank == 4) {
    h.heads = t.dims[1];
    h.length = t.dims[2];
    h.width = t.dims[3];
    h.view.b_stride = h.heads * h.length * h.width;
    h.view.h_stride = h.length * h.width;
    h.view.s_stride = h.width;
  } else {
    check(heads > 0 && t.dims[2] % heads == 0, [&] {
      return std::string(name) + " has shape " + t.dims.str() + ", which cannot be divided into " +
             std::to_string(heads) + " heads";
    });
    h.heads = heads;
    h.length = t.dims[1];
    h.width = t.dims[2] / heads;
    h.view.b_stride = h.length * t.dims[2];
    h.view.h_stride = h.width;
    h.view.s_stride = t.dims[2];
  }
  h.view.length = h.length;
  return h;
}

Heads past_heads(OpContext& context, int input, const Heads& now, const char* name) {
  const Tensor& t = context.input(input);
  check_same_dtype(context.input(0), t, "Q", name);
  check(t.dims.rank == 4, [&] {
    return std::string(name) + " has shape " + t.dims.str() +
           "; expected [batch, heads, past, "
           "head size]";
  });
  const Heads past = split_heads(t, 0, name);
  check(past.batch == now.batch && past.heads == now.heads && past.width == now.width, [&] {
    return std::string(name) + " has shape " + t.dims.str() + "; expected [" +
           std::to_string(now.batch) + ", " + std::to_string(now.heads) + ", past, " +
           std::to_string(now.width) + "]";
  });
  return past;
}

void check_mask(OpContext& context, const AttentionPlan& p) {
  if (!context.has_input(3)) return;
  const Tensor& mask = context.input(3);
  const Dims full{p.batch, p.heads, p.queries, p.total};
  bool fits = mask.dims.rank >= 1 && mask.dims.rank <= 4;
  for (int i = 1; fits && i <= mask.dims.rank; ++i) {
    const std::int64_t dim = mask.dims[mask.dims.rank - i];
    // The last dimension may be shorter than the keys: the rest is hidden.
    fits = dim == full[4 - i] || dim == 1 || (i == 1 && dim < p.total);
  }
  check(fits, [&] {
    return "the mask has shape " + mask.dims.str() + "; expected one that broadcasts to " +
           full.str();
  });
  if (mask.dtype != DType::kBool && !dtype_is_float(mask.dtype)) {
    fail(ErrorCode::kInvalidArgument, std::string("the mask has type ") + dtype_name(mask.dtype) +
                                          "; expected bool or a float type");
  }
}

}  // namespace

AttentionPlan plan_attention(OpContext& context, const AttentionAttributes& a) {
  const Tensor& q_in = context.input(0);
  const Tensor& k_in = context.input(1);
  const Tensor& v_in = context.input(2);
  check_same_dtype(q_in, k_in, "Q", "K");
  check_same_dtype(q_in, v_in, "Q", "V");
  const auto shapes = [&] {
    return "Q " + q_in.dims.str() + ", K " + k_in.dims.str() + " and V " + v_in.dims.str();
  };
  const int rank = q_in.dims.rank;
  check((rank == 3 || rank == 4) && k_in.dims.rank == rank && v_in.dims.rank == rank,
        [&] { return shapes() + ": expected three inputs of rank 3 or three of rank 4"; });
  const Heads q = split_heads(q_in, a.q_heads, "Q");
  const Heads k = split_heads(k_in, a.kv_heads, "K");
  const Heads v = split_heads(v_in, a.kv_heads, "V");
  check(q.batch == k.batch && k.batch == v.batch && k.heads == v.heads && k.length == v.length &&
            q.width == k.width,
        [&] { return shapes() + " do not fit together"; });
  check(k.heads > 0 && q.heads % k.heads == 0, [&] {
    return std::to_string(q.heads) + " query heads are not a multiple of " +
           std::to_string(k.heads) + " key heads";
  });
  check(q.width <= 1 << 20 && v.width <= 1 << 20,
        [&] { return shapes() + ": a head size beyond 1048576"; });

  AttentionPlan p;
  p.batch = q.batch;
  p.heads = q.heads;
  p.kv_heads = k.heads;
  p.queries = q.length;
  p.total = k.length;
  p.head_dim = static_cast<int>(q.width);
  p.value_dim = static_cast<int>(v.width);
  p.q = q.view;
  p.k = k.view;
  p.v = v.view;
  check(context.has_input(4) == context.has_input(5),
        [] { return std::string("past_key and past_value must be given together"); });
  if (context.has_input(4)) {
    p.past_k = past_heads(context, 4, k, "past_key").view;
    p.past_v = past_heads(context, 5, v, "past_value").view;
    check(p.past_k.length == p.past_v.length, [&] {
      return "past_key has " + std::to_string(p.past_k.length) + " positions but past_value " +
             std::to_string(p.past_v.length);
    });
    if (!checked_add(p.total, p.past_k.length, &p.total)) p.total = INT64_MAX;
  }
  constexpr std::int64_t kMaxKeys = std::int64_t{1} << 40;
  if (p.total > kMaxKeys || p.queries > kMaxKeys) {
    fail(ErrorCode::kOutOfMemory, "a sequence of " + std::to_string(std::max(p.total, p.queries)) +
                                      " positions is too long");
  }
  if (context.has_input(6)) {
    const Tensor& valid = context.input(6);
    check_dtype(valid, DType::kI64, "nonpad_kv_seqlen");
    check(valid.dims == Dims{p.batch}, [&] {
      return "nonpad_kv_seqlen has shape " + valid.dims.str() + "; expected [" +
             std::to_string(p.batch) + "]";
    });
    check(!context.has_input(4),
          [] { return std::string("nonpad_kv_seqlen cannot be combined with past_key"); });
    p.valid_keys = valid.as<std::int64_t>();
  }
  p.blocks = (p.total + kernels::kKvBlock - 1) / kernels::kKvBlock;
  p.scale = a.scale != 0.0f || p.head_dim == 0
                ? a.scale
                : static_cast<float>(1.0 / std::sqrt(static_cast<double>(p.head_dim)));
  p.softcap = a.softcap;
  p.causal = a.causal;
  p.left_window = a.left_window;
  p.right_window = a.right_window;
  p.packed_heads = rank == 3;
  p.result = p.packed_heads ? Dims{p.batch, p.queries, p.heads * p.value_dim}
                            : Dims{p.batch, p.heads, p.queries, p.value_dim};
  check_mask(context, p);
  return p;
}

void AttentionPlan::visible(std::int64_t b, std::int64_t s, std::int64_t* first,
                            std::int64_t* last) const {
  *first = 0;
  *last = total - 1;
  std::int64_t offset = past_k.length;
  if (valid_keys != nullptr) {
    const std::int64_t valid = std::clamp<std::int64_t>(valid_keys[b], 0, total);
    *last = valid - 1;
    offset = valid - queries;
  }
  const std::int64_t here = s + offset;  // the key position that the query stands at
  if (causal) *last = std::min(*last, here);
  if (right_window >= 0 && right_window < total) *last = std::min(*last, here + right_window);
  if (left_window >= 0 && left_window < total + queries) {
    *first = std::max<std::int64_t>(0, here - left_window);
  }
}

}  // namespace kvik::ops
