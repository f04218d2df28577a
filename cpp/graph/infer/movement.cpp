// Inference of operators that move elements without computing on them: Reshape, Slice, Concat, ...
#include <algorithm>

#include "graph/axes.h"
#include "graph/infer/rules.h"

namespace kvik::graph {

namespace {

// Where each index of the source comes from when its elements are regrouped into the shape `to`:
// both shapes are cut into common pieces, and a piece's index follows from the target's index by
// division and remainder. Nothing when the shapes' boundaries can't be compared.
std::optional<std::map<int, Expr>> regrouped_indices(const Shape& from, const Shape& to) {
  Layout source;
  for (std::size_t axis = 0; axis < from.size(); ++axis) {
    source.push_back(from[axis].is(1) ? Axis{} : Axis{{static_cast<int>(axis), from[axis], false}});
  }
  const auto target = regroup(source, to);
  if (!target) return std::nullopt;
  std::map<int, Expr> indices;
  for (std::size_t axis = 0; axis < from.size(); ++axis) indices[static_cast<int>(axis)] = Expr(0);
  for (std::size_t t = 0; t < to.size(); ++t) {
    Expr rest = Expr::index(static_cast<int>(t), to[t].constant().value_or(0));
    Expr inner = axis_size((*target)[t]);
    for (const Atom& piece : (*target)[t]) {
      inner = *exact_div(inner, piece.size);
      const Expr at = floor_div(rest, inner);
      rest = floor_mod(rest, inner);
      // Pieces of one source axis come in order, outermost first.
      indices[piece.role] = indices[piece.role] * piece.size + at;
    }
  }
  return indices;
}

void set_reshaped(InferContext& c, const std::optional<Shape>& to) {
  c.set(0, c.dtype(0), to);
  const auto content = c.content(0);
  if (!to || !content) return;
  if (!content->has_index()) return c.set_content(0, content);
  if (!c.shape(0)) return;
  if (const auto indices = regrouped_indices(*c.shape(0), *to)) {
    c.set_content(0, content->substitute(*indices));
  }
}

void reshape(InferContext& c) {
  const auto target = c.elements(1);
  if (!target) return c.set(0, c.dtype(0), std::nullopt);
  const bool allow_zero = c.node().int_attr("allowzero", 0) != 0;
  Shape out;
  std::optional<std::size_t> wildcard;
  Expr known(1);
  for (std::size_t i = 0; i < target->size(); ++i) {
    Expr dim = (*target)[i];
    if (dim.is(0) && !allow_zero) {
      if (!c.shape(0) || i >= c.shape(0)->size()) return c.set(0, c.dtype(0), std::nullopt);
      dim = (*c.shape(0))[i];
    }
    if (dim.is(-1)) {
      wildcard = i;
    } else {
      known = known * dim;
    }
    out.push_back(dim);
  }
  if (wildcard) {
    const auto rest = c.shape(0) ? exact_div(product(*c.shape(0)), known) : std::nullopt;
    out[*wildcard] = rest ? *rest : Expr::unknown();
  }
  set_reshaped(c, out);
}

void transpose(InferContext& c) {
  const auto& from = c.shape(0);
  if (!from) return c.set(0, c.dtype(0), std::nullopt);
  std::vector<std::int64_t> perm = c.node().ints_attr("perm").value_or(std::vector<std::int64_t>{});
  if (perm.empty()) {
    for (std::size_t i = from->size(); i-- > 0;) perm.push_back(static_cast<std::int64_t>(i));
  }
  if (perm.size() != from->size()) return c.set(0, c.dtype(0), std::nullopt);
  Shape to;
  std::map<int, Expr> indices;
  for (std::size_t i = 0; i < perm.size(); ++i) {
    const auto axis = normalize_axis(perm[i], from->size());
    if (!axis) return c.set(0, c.dtype(0), std::nullopt);
    to.push_back((*from)[static_cast<std::size_t>(*axis)]);
    indices.emplace(*axis, Expr::index(static_cast<int>(i)));
  }
  c.set(0, c.dtype(0), to);
  if (const auto content = c.content(0)) c.set_content(0, content->substitute(indices));
}

void unsqueeze(InferContext& c) {
  const auto axes = c.ints(1);
  const auto& from = c.shape(0);
  if (!axes || !from) return c.set(0, c.dtype(0), std::nullopt);
  const std::size_t rank = from->size() + axes->size();
  std::vector<bool> added(rank, false);
  for (const std::int64_t a : *axes) {
    const auto axis = normalize_axis(a, rank);
    if (!axis || added[static_cast<std::size_t>(*axis)]) {
      return c.set(0, c.dtype(0), std::nullopt);
    }
    added[static_cast<std::size_t>(*axis)] = true;
  }
  Shape to;
  std::map<int, Expr> indices;
  int source = 0;
  for (std::size_t i = 0; i < rank; ++i) {
    if (added[i]) {
      to.emplace_back(1);
      continue;
    }
    indices.emplace(source, Expr::index(static_cast<int>(i)));
    to.push_back((*from)[static_cast<std::size_t>(source++)]);
  }
  c.set(0, c.dtype(0), to);
  if (const auto content = c.content(0)) c.set_content(0, content->substitute(indices));
}

void squeeze(InferContext& c) {
  const auto& from = c.shape(0);
  if (!from) return c.set(0, c.dtype(0), std::nullopt);
  std::vector<bool> dropped(from->size(), false);
  if (c.has(1)) {
    const auto axes = c.ints(1);
    if (!axes) return c.set(0, c.dtype(0), std::nullopt);
    for (const std::int64_t a : *axes) {
      const auto axis = normalize_axis(a, from->size());
      if (!axis) return c.set(0, c.dtype(0), std::nullopt);
      dropped[static_cast<std::size_t>(*axis)] = true;
    }
  } else {
    for (std::size_t i = 0; i < from->size(); ++i) dropped[i] = (*from)[i].is(1);
  }
  Shape to;
  std::map<int, Expr> indices;
  for (std::size_t i = 0; i < from->size(); ++i) {
    if (dropped[i]) {
      indices.emplace(static_cast<int>(i), Expr(0));
    } else {
      indices.emplace(static_cast<int>(i), Expr::index(static_cast<int>(to.size())));
      to.push_back((*from)[i]);
    }
  }
  c.set(0, c.dtype(0), to);
  if (const auto content = c.content(0)) c.set_content(0, content->substitute(indices));
}

void flatten(InferContext& c) {
  const auto& from = c.shape(0);
  const std::int64_t attribute = c.node().int_attr("axis", 1);
  if (!from) return c.set(0, c.dtype(0), std::nullopt);
  const auto rank = static_cast<std::int64_t>(from->size());
  const std::int64_t axis = attribute < 0 ? attribute + rank : attribute;
  if (axis < 0 || axis > rank) return c.set(0, c.dtype(0), std::nullopt);
  const auto split = from->begin() + axis;
  set_reshaped(c, Shape{product(Shape(from->begin(), split)), product(Shape(split, from->end()))});
}

void expand(InferContext& c) {
  const auto target = c.elements(1);
  if (!target || !c.shape(0)) return c.set(0, c.dtype(0), std::nullopt);
  const Shape to = broadcast(*c.shape(0), *target);
  c.set(0, c.dtype(0), to);
  if (const auto content = c.content(0)) {
    c.set_content(0, broadcast_content(*content, *c.shape(0), to));
  }
}

void tile(InferContext& c) {
  const auto repeats = c.elements(1);
  const auto& from = c.shape(0);
  if (!repeats || !from || repeats->size() != from->size()) {
    return c.set(0, c.dtype(0), std::nullopt);
  }
  Shape to;
  std::map<int, Expr> indices;
  for (std::size_t i = 0; i < from->size(); ++i) {
    to.push_back((*from)[i] * (*repeats)[i]);
    const Expr at = Expr::index(static_cast<int>(i));
    indices.emplace(static_cast<int>(i), (*repeats)[i].is(1) ? at : floor_mod(at, (*from)[i]));
  }
  c.set(0, c.dtype(0), to);
  if (const auto content = c.content(0)) c.set_content(0, content->substitute(indices));
}

void concat(InferContext& c) {
  const auto& first = c.shape(0);
  const auto axis =
      first ? normalize_axis(c.node().int_attr("axis", 0), first->size()) : std::nullopt;
  if (!axis) return c.set(0, c.dtype(0), std::nullopt);
  const auto a = static_cast<std::size_t>(*axis);
  Shape to = *first;
  Expr total(0);
  for (std::size_t i = 0; i < c.inputs(); ++i) {
    const auto& shape = c.shape(i);
    if (!shape || shape->size() != first->size()) return c.set(0, c.dtype(0), std::nullopt);
    total = total + (*shape)[a];
  }
  to[a] = total;
  c.set(0, c.dtype(0), to);

  // From the last part backwards: where(i < start of the next part, this part, the rest).
  std::optional<Expr> content;
  Expr end = total;
  for (std::size_t i = c.inputs(); i-- > 0;) {
    const Expr start = end - (*c.shape(i))[a];
    const auto part = c.content(i);
    if (!part) return;
    const Expr shifted = part->substitute({{*axis, Expr::index(*axis) - start}});
    if (!content) {
      content = shifted;
    } else if (content->type() != shifted.type()) {
      return;
    } else {
      content = where(less(Expr::index(*axis), end), shifted, *content);
    }
    end = start;
  }
  c.set_content(0, content);
}

void split(InferContext& c) {
  const auto& from = c.shape(0);
  const auto axis =
      from ? normalize_axis(c.node().int_attr("axis", 0), from->size()) : std::nullopt;
  if (!axis) return;
  const auto a = static_cast<std::size_t>(*axis);
  const std::size_t count = c.node().outputs.size();
  std::vector<Expr> sizes;
  if (c.has(1)) {
    const auto given = c.elements(1);
    if (!given || given->size() != count) return;
    sizes = *given;
  } else {
    const auto whole = (*from)[a].constant();
    if (!whole) return;
    const std::int64_t parts = static_cast<std::int64_t>(count);
    const std::int64_t chunk = (*whole + parts - 1) / parts;
    for (std::int64_t i = 0; i < parts; ++i) {
      sizes.emplace_back(std::max<std::int64_t>(0, std::min(chunk, *whole - i * chunk)));
    }
  }
  Expr start(0);
  for (std::size_t i = 0; i < count; ++i) {
    Shape to = *from;
    to[a] = sizes[i];
    c.set(i, c.dtype(0), to);
    if (const auto content = c.content(0)) {
      c.set_content(i, content->substitute({{*axis, Expr::index(*axis) + start}}));
    }
    start = start + sizes[i];
  }
}

// Where a table's last n rows start, as -n, table size - n or max(table size - n, 0), without the
// clamping: it is what is meant for an n up to the table's size.
Expr from_the_end(const Expr& bound, const Expr& size) {
  if (bound.bounds().high < 0) return size + bound;
  if (bound.kind() != ExprKind::kMax) return bound;
  if (bound.args()[0].is(0)) return bound.args()[1];
  return bound.args()[1].is(0) ? bound.args()[0] : bound;
}

// Slice's start or end, counted from the front and clamped to [0, dim].
Expr clamp_bound(InferContext& c, const Expr& bound, const Expr& dim) {
  constexpr std::int64_t kFar = std::int64_t{1} << 31;  // exporters write INT64_MAX for "the end"
  if (dim.constant() && !bound.constant()) {
    const Expr front = from_the_end(bound, dim);
    if (c.assume_at_most(dim - front, *dim.constant())) return front;
  }
  if (const auto value = bound.constant()) {
    if (*value >= kFar) return dim;
    if (*value <= -kFar) return Expr(0);
    if (*value < 0) return max(dim + bound, Expr(0));
    return min(bound, dim);
  }
  if (dim.constant() && c.assume_at_most(bound, *dim.constant())) return bound;
  if (bound.bounds().low >= 0) return min(bound, dim);
  if (bound.bounds().high < 0) return max(dim + bound, Expr(0));
  return Expr::unknown();
}

void slice(InferContext& c) {
  const auto& from = c.shape(0);
  const auto starts = c.elements(1);
  const auto ends = c.elements(2);
  if (!from || !starts || !ends || starts->size() != ends->size()) {
    return c.set(0, c.dtype(0), std::nullopt);
  }
  std::vector<std::int64_t> axes;
  for (std::size_t i = 0; i < starts->size(); ++i) axes.push_back(static_cast<std::int64_t>(i));
  std::vector<std::int64_t> steps(starts->size(), 1);
  const auto given_axes = c.has(3) ? c.ints(3) : std::optional(axes);
  const auto given_steps = c.has(4) ? c.ints(4) : std::optional(steps);
  if (!given_axes || !given_steps || given_axes->size() != axes.size() ||
      given_steps->size() != steps.size()) {
    return c.set(0, c.dtype(0), std::nullopt);
  }
  Shape to = *from;
  std::map<int, Expr> indices;
  for (std::size_t i = 0; i < axes.size(); ++i) {
    const auto axis = normalize_axis((*given_axes)[i], from->size());
    const std::int64_t step = (*given_steps)[i];
    if (!axis || step == 0) return c.set(0, c.dtype(0), std::nullopt);
    const Expr& dim = (*from)[static_cast<std::size_t>(*axis)];
    Expr& out = to[static_cast<std::size_t>(*axis)];
    if (step > 0) {
      const Expr start = clamp_bound(c, (*starts)[i], dim);
      const Expr end = clamp_bound(c, (*ends)[i], dim);
      const Expr length = max(end - start, Expr(0));
      out = step == 1 ? length : floor_div(length + Expr(step - 1), Expr(step));
      indices.emplace(*axis, start + Expr(step) * Expr::index(*axis));
    } else if (step == -1 && (*starts)[i].is(-1) && (*ends)[i].constant() &&
               *(*ends)[i].constant() < -(std::int64_t{1} << 31)) {
      indices.emplace(*axis, dim - Expr(1) - Expr::index(*axis));  // a flip
    } else {
      out = Expr::unknown();
      indices.emplace(*axis, Expr::unknown());
    }
  }
  c.set(0, c.dtype(0), to);
  if (const auto content = c.content(0)) c.set_content(0, content->substitute(indices));
}

void trilu(InferContext& c) {
  c.set(0, c.dtype(0), c.shape(0));
  const auto content = c.content(0);
  const auto& shape = c.shape(0);
  const auto k = c.has(1) ? c.element(1, 0) : std::optional(Expr(0));
  if (!content || !shape || shape->size() < 2 || !k) return;
  const int rank = static_cast<int>(shape->size());
  const Expr offset = Expr::index(rank - 1) - Expr::index(rank - 2) - *k;  // column - row - k
  const bool upper = c.node().int_attr("upper", 1) != 0;
  const Expr keep = upper ? less(Expr(-1), offset) : less(offset, Expr(1));
  const Expr zero = cast(Expr(0), content->type());
  c.set_content(0, where(keep, *content, zero));
}

void pad(InferContext& c) {
  const auto& from = c.shape(0);
  const auto pads = c.elements(1);
  if (!from || !pads || c.has(3) || pads->size() != 2 * from->size()) {
    return c.set(0, c.dtype(0), std::nullopt);
  }
  Shape to = *from;
  for (std::size_t i = 0; i < to.size(); ++i) {
    to[i] = to[i] + (*pads)[i] + (*pads)[i + to.size()];
  }
  c.set(0, c.dtype(0), to);
}

}  // namespace

std::vector<InferEntry> movement_rules() {
  return {{"", "Reshape", reshape}, {"", "Transpose", transpose}, {"", "Unsqueeze", unsqueeze},
          {"", "Squeeze", squeeze}, {"", "Flatten", flatten},     {"", "Expand", expand},
          {"", "Tile", tile},       {"", "Concat", concat},       {"", "Split", split},
          {"", "Slice", slice},     {"", "Trilu", trilu},         {"", "Pad", pad}};
}

}  // namespace kvik::graph
