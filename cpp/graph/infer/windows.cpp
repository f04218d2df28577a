// Inference of operators that move windows over images, and of recurrent layers. Attributes that
// make no sense leave the shape unknown: the operators refuse them.
#include <algorithm>
#include <utility>

#include "graph/infer/rules.h"

namespace kvik::graph {

namespace {

constexpr std::int64_t kLargestAttribute = std::int64_t{1} << 40;

// The attribute's integers, `fallback` for each where there are none; nothing where their number or
// one of them is out of range.
std::optional<std::vector<std::int64_t>> window_ints(const InferContext& c, const char* key,
                                                     std::size_t count, std::int64_t fallback) {
  auto values = c.node().ints_attr(key).value_or(std::vector<std::int64_t>{});
  if (values.empty()) values.assign(count, fallback);
  const bool fits =
      values.size() == count && std::all_of(values.begin(), values.end(), [&](std::int64_t value) {
        return value >= std::min<std::int64_t>(fallback, 1) && value <= kLargestAttribute;
      });
  if (!fits) return std::nullopt;
  return values;
}

// Nothing where a dimension would be negative.
std::optional<Shape> valid(Shape shape) {
  for (const Expr& dim : shape) {
    if (dim.constant() && *dim.constant() < 0) return std::nullopt;
  }
  return shape;
}

// What the windows make of the spatial dimensions of x. Kernel sizes come from `kernel`.
std::optional<Shape> window_shape(const InferContext& c, const Shape& x, const Shape& kernel) {
  const std::size_t axes = x.size() - 2;
  const auto strides = window_ints(c, "strides", axes, 1);
  const auto dilations = window_ints(c, "dilations", axes, 1);
  const auto pads = window_ints(c, "pads", 2 * axes, 0);
  if (!strides || !dilations || !pads || kernel.size() != axes) return std::nullopt;
  const std::string how = c.node().string_attr("auto_pad", "NOTSET");
  const bool same = how == "SAME_UPPER" || how == "SAME_LOWER";
  const bool ceil = c.node().int_attr("ceil_mode", 0) != 0;
  Shape out;
  for (std::size_t i = 0; i < axes; ++i) {
    const Expr stride((*strides)[i]);
    if (same) {
      out.push_back(floor_div(x[2 + i] + stride - Expr(1), stride));
      continue;
    }
    if (ceil) {
      out.push_back(Expr::unknown());
      continue;
    }
    Expr room = x[2 + i] - (kernel[i] - Expr(1)) * Expr((*dilations)[i]) - Expr(1);
    if (how != "VALID") room = room + Expr((*pads)[i]) + Expr((*pads)[axes + i]);
    out.push_back(floor_div(room, stride) + Expr(1));
  }
  return valid(std::move(out));
}

void conv(InferContext& c) {
  const auto& x = c.shape(0);
  const auto& w = c.shape(1);
  if (!x || !w || x->size() < 3 || x->size() != w->size()) {
    return c.set(0, c.dtype(0), std::nullopt);
  }
  const auto spatial = window_shape(c, *x, Shape(w->begin() + 2, w->end()));
  if (!spatial) return c.set(0, c.dtype(0), std::nullopt);
  Shape out{(*x)[0], (*w)[0]};
  out.insert(out.end(), spatial->begin(), spatial->end());
  c.set(0, c.dtype(0), out);
}

void conv_transpose(InferContext& c) {
  const auto& x = c.shape(0);
  const auto& w = c.shape(1);
  if (!x || !w || x->size() < 3 || x->size() != w->size()) {
    return c.set(0, c.dtype(0), std::nullopt);
  }
  const std::size_t axes = x->size() - 2;
  const auto strides = window_ints(c, "strides", axes, 1);
  const auto dilations = window_ints(c, "dilations", axes, 1);
  const auto pads = window_ints(c, "pads", 2 * axes, 0);
  const auto extra = window_ints(c, "output_padding", axes, 0);
  const bool plain =
      c.node().string_attr("auto_pad", "NOTSET") == "NOTSET" && !c.node().has_attr("output_shape");
  const std::int64_t group = c.node().int_attr("group", 1);
  if (!strides || !dilations || !pads || !extra || !plain || group < 1) {
    return c.set(0, c.dtype(0), std::nullopt);
  }
  Shape out{(*x)[0], (*w)[1] * Expr(group)};
  for (std::size_t i = 0; i < axes; ++i) {
    const Expr extent = ((*w)[2 + i] - Expr(1)) * Expr((*dilations)[i]) + Expr(1);
    out.push_back(((*x)[2 + i] - Expr(1)) * Expr((*strides)[i]) + extent + Expr((*extra)[i]) -
                  Expr((*pads)[i]) - Expr((*pads)[axes + i]));
  }
  c.set(0, c.dtype(0), valid(std::move(out)));
}

void pool(InferContext& c) {
  const auto& x = c.shape(0);
  const auto kernel = c.node().ints_attr("kernel_shape");
  std::optional<Shape> out;
  if (x && kernel && x->size() >= 3 && kernel->size() == x->size() - 2) {
    const auto sizes = window_ints(c, "kernel_shape", kernel->size(), 1);
    if (sizes) {
      Shape given;
      for (const std::int64_t size : *sizes) given.emplace_back(size);
      if (const auto spatial = window_shape(c, *x, given)) {
        out = Shape{(*x)[0], (*x)[1]};
        out->insert(out->end(), spatial->begin(), spatial->end());
      }
    }
  }
  c.set(0, c.dtype(0), out);
  c.set(1, DType::kI64, out);
}

void global_pool(InferContext& c) {
  std::optional<Shape> out = c.shape(0);
  if (out) {
    for (std::size_t i = 2; i < out->size(); ++i) (*out)[i] = Expr(1);
  }
  c.set(0, c.dtype(0), out);
}

// The sizes where they are given for all axes; of scales only that they leave the rank.
void resize(InferContext& c) {
  const auto& x = c.shape(0);
  if (!x) return c.set(0, c.dtype(0), std::nullopt);
  Shape out(x->size(), Expr::unknown());
  const bool plain = !c.node().has_attr("axes") &&
                     c.node().string_attr("keep_aspect_ratio_policy", "stretch") == "stretch";
  const auto sizes = plain && !c.has(2) && c.has(3) ? c.elements(3) : std::nullopt;
  if (sizes && sizes->size() == out.size()) out = *sizes;
  c.set(0, c.dtype(0), out);
}

// Y [steps, directions, batch, hidden], Y_h and Y_c [directions, batch, hidden]; layout 1 has the
// batch first. W and R may be integers, of the same shape.
void recurrent(InferContext& c) {
  const auto& x = c.shape(0);
  const auto& r = c.shape(2);
  const bool known = x && r && x->size() == 3 && r->size() == 3;
  const bool batch_first = c.node().int_attr("layout", 0) != 0;
  std::optional<Shape> all, last;
  if (known) {
    const Expr& steps = (*x)[batch_first ? 1 : 0];
    const Expr& batch = (*x)[batch_first ? 0 : 1];
    const Expr& directions = (*r)[0];
    const Expr& hidden = (*r)[2];
    all = batch_first ? Shape{batch, steps, directions, hidden}
                      : Shape{steps, directions, batch, hidden};
    last = batch_first ? Shape{batch, directions, hidden} : Shape{directions, batch, hidden};
  }
  c.set(0, c.dtype(0), all);
  c.set(1, c.dtype(0), last);
  c.set(2, c.dtype(0), last);
}

}  // namespace

std::vector<InferEntry> window_rules() {
  return {{"", "Conv", conv},
          {"", "ConvTranspose", conv_transpose},
          {"", "MaxPool", pool},
          {"", "AveragePool", pool},
          {"", "LpPool", pool},
          {"", "GlobalMaxPool", global_pool},
          {"", "GlobalAveragePool", global_pool},
          {"", "GlobalLpPool", global_pool},
          {"", "Resize", resize},
          {"", "LSTM", recurrent},
          {"", "GRU", recurrent},
          {"", "RNN", recurrent},
          {"kvik", "LSTM", recurrent},
          {"kvik", "GRU", recurrent},
          {"kvik", "RNN", recurrent}};
}

}  // namespace kvik::graph
