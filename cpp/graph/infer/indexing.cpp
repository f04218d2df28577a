// Inference of operators that make or look up elements: Shape, Range, Gather, CumSum, ...
#include "graph/infer/rules.h"

namespace kvik::graph {

namespace {

// A 1-D content that spells out the given elements.
Expr spelled_out(const std::vector<Expr>& elements, std::int64_t first = 0) {
  Expr content = elements.empty() ? Expr(0) : elements.back();
  for (std::size_t i = elements.size(); i-- > 1;) {
    const Expr before = less(Expr::index(0), Expr(first + static_cast<std::int64_t>(i)));
    content = where(before, elements[i - 1], content);
  }
  return content;
}

void shape_rule(InferContext& c) {
  const auto& dims = c.shape(0);
  if (!dims) return c.set(0, DType::kI64, std::nullopt);
  const auto rank = static_cast<std::int64_t>(dims->size());
  const auto clamp = [rank](std::int64_t v) {
    return std::max<std::int64_t>(0, std::min(rank, v < 0 ? v + rank : v));
  };
  const std::int64_t start = clamp(c.node().int_attr("start", 0));
  const std::int64_t end = std::max(start, clamp(c.node().int_attr("end", rank)));
  c.set(0, DType::kI64, Shape{Expr(end - start)});
  c.set_content(0, spelled_out(std::vector<Expr>(dims->begin() + start, dims->begin() + end)));
}

void size_rule(InferContext& c) {
  c.set(0, DType::kI64, Shape{});
  if (c.shape(0)) c.set_content(0, product(*c.shape(0)));
}

void range(InferContext& c) {
  const auto start = c.element(0, 0);
  const auto limit = c.element(1, 0);
  const auto delta = c.element(2, 0);
  if (!start || !limit || !delta || !delta->constant() || delta->is(0)) {
    return c.set(0, c.dtype(0), Shape{Expr::unknown()});
  }
  const std::int64_t step = *delta->constant();
  const Expr span = step > 0 ? *limit - *start : *start - *limit;
  const std::int64_t size = step > 0 ? step : -step;
  const Expr length = max(floor_div(span + Expr(size - 1), Expr(size)), Expr(0));
  c.set(0, c.dtype(0), Shape{length});
  c.set_content(0, *start + *delta * Expr::index(0));
}

void constant_of_shape(InferContext& c) {
  DType dtype = DType::kF32;
  std::optional<Expr> content = Expr::real(0.0F);
  if (const auto it = c.node().attributes.find("value"); it != c.node().attributes.end()) {
    if (const auto* tensor = std::get_if<ConstantTensor>(&it->second);
        tensor != nullptr && tensor->dims.elements() == 1) {
      dtype = tensor->dtype;
      content.reset();
      if (content_type(dtype)) {
        content = Expr::lookup(std::make_shared<const ConstantTensor>(*tensor), Expr(0));
      }
    }
  }
  const auto dims = c.elements(0);
  c.set(0, dtype, dims ? std::optional<Shape>(*dims) : std::nullopt);
  c.set_content(0, content);
}

// An index counted from the front of `dim`, or nothing when its sign is not known.
std::optional<Expr> front_index(const Expr& index, const Expr& dim) {
  if (index.bounds().low >= 0) return index;
  if (index.bounds().high < 0) return index + dim;
  return std::nullopt;
}

void gather(InferContext& c) {
  const auto& data = c.shape(0);
  const auto& at = c.shape(1);
  const auto axis =
      data ? normalize_axis(c.node().int_attr("axis", 0), data->size()) : std::nullopt;
  if (!axis || !at) return c.set(0, c.dtype(0), std::nullopt);
  const int added = static_cast<int>(at->size());
  Shape to(data->begin(), data->begin() + *axis);
  to.insert(to.end(), at->begin(), at->end());
  to.insert(to.end(), data->begin() + *axis + 1, data->end());
  c.set(0, c.dtype(0), to);

  const auto content = c.content(0);
  const auto index = c.content(1);
  if (!content || !index) return;
  std::map<int, Expr> shift;  // the indices' own axes follow `axis` in the result
  for (int i = 0; i < added; ++i) shift.emplace(i, Expr::index(*axis + i));
  const auto position =
      front_index(index->substitute(shift), (*data)[static_cast<std::size_t>(*axis)]);
  if (!position) return;
  std::map<int, Expr> indices{{*axis, *position}};
  for (int i = *axis + 1; i < static_cast<int>(data->size()); ++i) {
    indices.emplace(i, Expr::index(i - 1 + added));
  }
  c.set_content(0, content->substitute(indices));
}

void gather_nd(InferContext& c) {
  const auto& data = c.shape(0);
  const auto& at = c.shape(1);
  if (!data || !at || at->empty() || !at->back().constant() ||
      c.node().int_attr("batch_dims", 0) != 0) {
    return c.set(0, c.dtype(0), std::nullopt);
  }
  const std::int64_t depth = *at->back().constant();
  if (depth < 1 || depth > static_cast<std::int64_t>(data->size())) {
    return c.set(0, c.dtype(0), std::nullopt);
  }
  const int lead = static_cast<int>(at->size()) - 1;
  Shape to(at->begin(), at->end() - 1);
  to.insert(to.end(), data->begin() + depth, data->end());
  c.set(0, c.dtype(0), to);

  const auto content = c.content(0);
  const auto index = c.content(1);
  if (!content) return;
  std::map<int, Expr> indices;
  for (int i = 0; i < static_cast<int>(data->size()); ++i) {
    if (i >= depth) {
      indices.emplace(i, Expr::index(lead + i - static_cast<int>(depth)));
    } else if (content->has_index(i)) {
      if (!index) return;
      const auto position =
          front_index(index->substitute({{lead, Expr(i)}}), (*data)[static_cast<std::size_t>(i)]);
      if (!position) return;
      indices.emplace(i, *position);
    }
  }
  c.set_content(0, content->substitute(indices));
}

void gather_elements(InferContext& c) {
  c.set(0, c.dtype(0), c.shape(1));
}

void scatter(InferContext& c) {
  c.set(0, c.dtype(0), c.shape(0));
}

void cumsum(InferContext& c) {
  c.set(0, c.dtype(0), c.shape(0));
  const auto content = c.content(0);
  const auto& shape = c.shape(0);
  const auto axis_value = c.element(1, 0);
  if (!content || !shape || !axis_value || !axis_value->constant() ||
      c.node().int_attr("reverse", 0) != 0) {
    return;
  }
  const auto axis = normalize_axis(*axis_value->constant(), shape->size());
  if (!axis || content->has_index(*axis)) return;
  const std::int64_t inclusive = c.node().int_attr("exclusive", 0) == 0 ? 1 : 0;
  const Expr count = Expr::index(*axis) + Expr(inclusive);
  if (content->type() == ExprType::kInt) {
    c.set_content(0, *content * count);
  } else if (content->real_constant() == 1.0F) {
    c.set_content(0, cast(count, ExprType::kFloat));  // exact: counts are far below 2^24
  }
}

void one_hot(InferContext& c) {
  const auto& at = c.shape(0);
  const auto depth = c.element(1, 0);
  if (!at || !depth) return c.set(0, c.dtype(2), std::nullopt);
  const auto axis = normalize_axis(c.node().int_attr("axis", -1), at->size() + 1);
  if (!axis) return c.set(0, c.dtype(2), std::nullopt);
  Shape to = *at;
  to.insert(to.begin() + *axis, *depth);
  c.set(0, c.dtype(2), to);
}

void non_zero(InferContext& c) {
  std::optional<Shape> to;
  if (c.shape(0)) to = Shape{Expr(static_cast<std::int64_t>(c.shape(0)->size())), Expr::unknown()};
  c.set(0, DType::kI64, to);
}

}  // namespace

std::vector<InferEntry> indexing_rules() {
  return {{"", "Shape", shape_rule},
          {"", "Size", size_rule},
          {"", "Range", range},
          {"", "ConstantOfShape", constant_of_shape},
          {"", "Gather", gather},
          {"", "GatherND", gather_nd},
          {"", "GatherElements", gather_elements},
          {"", "ScatterND", scatter},
          {"", "ScatterElements", scatter},
          {"", "CumSum", cumsum},
          {"", "OneHot", one_hot},
          {"", "NonZero", non_zero}};
}

}  // namespace kvik::graph
