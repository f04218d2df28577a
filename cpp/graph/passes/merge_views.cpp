// merge_views: a chain of Reshape, Transpose, Squeeze, Unsqueeze and Flatten becomes the shortest
// chain that rearranges elements in the same way.
//
// The elements of the chain's source are numbered by atoms, pieces of its axes. A view regroups or
// permutes them. In the end the order of the atoms says whether a Transpose is needed, and their
// grouping whether Reshapes are. Among chains of one length the one whose Reshape comes last is
// canonical, so that reshapes travel towards the end of the graph, where they cancel.
#include <algorithm>

#include "graph/axes.h"
#include "graph/passes/match.h"
#include "graph/passes/passes.h"

namespace kvik::graph {

namespace {

constexpr std::size_t kMaxChain = 8;

bool is_view(const Node& node) {
  return node.domain.empty() &&
         (node.op == "Reshape" || node.op == "Transpose" || node.op == "Squeeze" ||
          node.op == "Unsqueeze" || node.op == "Flatten");
}

// The permutation of a Transpose, its default spelled out.
std::vector<std::int64_t> permutation(const Node& node, std::size_t rank) {
  auto perm = node.ints_attr("perm").value_or(std::vector<std::int64_t>{});
  if (perm.empty()) {
    for (std::size_t i = rank; i-- > 0;) perm.push_back(static_cast<std::int64_t>(i));
  }
  return perm;
}

// The source's axes and the result's, over the same atoms. Every atom's role is unique.
struct Tracked {
  Layout source;
  Layout result;
  int roles = 0;
};

Tracked start(const Shape& shape) {
  Tracked t;
  for (const Expr& dim : shape) {
    Axis axis;
    if (!dim.is(1)) axis.push_back({t.roles++, dim, false});
    t.source.push_back(axis);
  }
  t.result = t.source;
  return t;
}

// Gives the pieces of atoms that regroup() has split roles of their own, in the source too.
void separate_pieces(Tracked& t) {
  std::map<int, std::vector<Atom>> pieces;
  for (Axis& axis : t.result) {
    for (Atom& atom : axis) {
      auto& list = pieces[atom.role];  // the first piece keeps the role
      if (!list.empty()) atom.role = t.roles++;
      list.push_back(atom);
    }
  }
  for (Axis& axis : t.source) {
    Axis replaced;
    for (const Atom& atom : axis) {
      const auto& list = pieces[atom.role];
      replaced.insert(replaced.end(), list.begin(), list.end());
    }
    axis = std::move(replaced);
  }
}

bool apply(Tracked& t, const Node& node, const Shape& to) {
  if (node.op == "Transpose") {
    Layout permuted;
    for (const std::int64_t axis : permutation(node, t.result.size())) {
      if (axis < 0 || axis >= static_cast<std::int64_t>(t.result.size())) return false;
      permuted.push_back(t.result[static_cast<std::size_t>(axis)]);
    }
    t.result = std::move(permuted);
    return true;
  }
  auto regrouped = regroup(t.result, to);
  if (!regrouped) return false;
  t.result = std::move(*regrouped);
  separate_pieces(t);
  return true;
}

std::vector<Atom> flat(const Layout& layout) {
  std::vector<Atom> out;
  for (const Axis& axis : layout) out.insert(out.end(), axis.begin(), axis.end());
  return out;
}

// Joins atoms that are neighbours within an axis both at the source and in the result.
void join_neighbours(Tracked& t) {
  for (Axis& axis : t.source) {
    for (std::size_t i = 0; i + 1 < axis.size();) {
      bool joined_here = false;
      for (Axis& other : t.result) {
        for (std::size_t j = 0; j + 1 < other.size() && !joined_here; ++j) {
          if (other[j].role != axis[i].role || other[j + 1].role != axis[i + 1].role) continue;
          const Expr size = other[j].size * other[j + 1].size;
          other[j].size = axis[i].size = size;
          other.erase(other.begin() + static_cast<std::ptrdiff_t>(j) + 1);
          axis.erase(axis.begin() + static_cast<std::ptrdiff_t>(i) + 1);
          joined_here = true;
        }
      }
      if (!joined_here) ++i;
    }
  }
}

// What replaces a chain: an optional Reshape, an optional Transpose, an optional view last.
struct Plan {
  std::optional<Shape> reshape_first;
  std::vector<std::int64_t> perm;  // empty: none
  bool view_last = false;          // to the result's own shape
  std::size_t length() const {
    return (reshape_first ? 1U : 0U) + (perm.empty() ? 0U : 1U) + (view_last ? 1U : 0U);
  }
};

// perm such that axis i of the result is axis perm[i] of `from`: axes with atoms by their first
// atom, axes of size 1 in order. Nothing when the axes do not correspond one to one.
std::optional<std::vector<std::int64_t>> permutation_between(const Layout& from, const Layout& to) {
  if (from.size() != to.size()) return std::nullopt;
  std::vector<bool> used(from.size(), false);
  std::vector<std::int64_t> perm;
  for (const Axis& axis : to) {
    std::size_t i = 0;
    while (i < from.size() && (used[i] || !(from[i] == axis))) ++i;
    if (i == from.size()) return std::nullopt;
    used[i] = true;
    perm.push_back(static_cast<std::int64_t>(i));
  }
  return perm;
}

Shape sizes(const Layout& layout) {
  Shape out;
  for (const Axis& axis : layout) out.push_back(axis_size(axis));
  return out;
}

// The shortest plan for the rearrangement.
Plan make_plan(const Tracked& t) {
  Plan plan;
  const std::vector<Atom> before = flat(t.source);
  const std::vector<Atom> after = flat(t.result);
  if (before == after) {
    plan.view_last = !(sizes(t.source) == sizes(t.result));
    return plan;
  }
  if (const auto perm = permutation_between(t.source, t.result)) {
    plan.perm = *perm;
    return plan;
  }
  const bool whole = std::all_of(t.source.begin(), t.source.end(),
                                 [](const Axis& axis) { return axis.size() <= 1; });
  // One axis an atom; those of size 1 lead, so that they stay out of the way.
  Layout grid;
  if (whole) {
    grid = t.source;
  } else {
    const bool result_is_grid = std::all_of(t.result.begin(), t.result.end(),
                                            [](const Axis& axis) { return axis.size() <= 1; });
    if (result_is_grid) {
      for (const Axis& axis : t.result) {
        if (axis.empty()) grid.emplace_back();
      }
    }
    for (const Atom& atom : before) grid.push_back({atom});
    plan.reshape_first = sizes(grid);
  }
  if (const auto perm = permutation_between(grid, t.result)) {
    plan.perm = *perm;
    return plan;
  }
  Layout permuted;
  for (const Axis& axis : grid) {
    if (axis.empty()) permuted.push_back(axis);
  }
  for (const Atom& atom : after) permuted.push_back({atom});
  plan.perm = *permutation_between(grid, permuted);
  plan.view_last = true;
  return plan;
}

// A chain of views that ends in `nodes.front()`, latest first.
struct Chain {
  std::vector<NodeId> nodes;
  ValueId source = kNoValue;
  std::size_t dying = 0;  // how many of the nodes nobody else needs
};

Chain chain_to(const Rewriter& r, NodeId last) {
  Chain chain;
  chain.nodes.push_back(last);
  chain.source = r.node(last).input(0);
  chain.dying = 1;
  return chain;
}

// Extends the chain by the view before it, if there is one.
bool extend(const Rewriter& r, Chain& chain) {
  const NodeId n = r.producer_id(chain.source);
  if (n == kNoNode || !is_view(r.node(n)) || chain.nodes.size() == kMaxChain) return false;
  if (chain.dying == chain.nodes.size() && r.used_once(chain.source)) ++chain.dying;
  chain.nodes.push_back(n);
  chain.source = r.node(n).input(0);
  return true;
}

std::optional<Plan> plan_chain(const Rewriter& r, const Chain& chain) {
  const auto from = r.shape(chain.source);
  if (!from || has_unknown(*from)) return std::nullopt;
  Tracked t = start(*from);
  for (std::size_t i = chain.nodes.size(); i-- > 0;) {
    const Node& node = r.node(chain.nodes[i]);
    const auto to = r.shape(node.output(0));
    if (!to || has_unknown(*to) || !apply(t, node, *to)) return std::nullopt;
  }
  join_neighbours(t);
  return make_plan(t);
}

bool has_length_two_in_canonical_order(const Rewriter& r, const Chain& chain, const Plan& plan) {
  return chain.nodes.size() == 2 && chain.dying == 2 && plan.view_last && !plan.perm.empty() &&
         r.node(chain.nodes[0]).is("Transpose");
}

bool improves(const Rewriter& r, const Chain& chain, const Plan& plan) {
  if (plan.length() == 0) return true;
  return (plan.length() < chain.nodes.size() && plan.length() <= chain.dying) ||
         has_length_two_in_canonical_order(r, chain, plan);
}

// Adds or drops axes of size 1 only: said as Unsqueeze or Squeeze, which needs no sizes.
struct UnitAxes {
  std::string op;
  std::vector<std::int64_t> axes;
};

std::optional<std::vector<std::int64_t>> added_units(const Shape& from, const Shape& to) {
  std::vector<std::int64_t> added;
  std::size_t i = 0;
  for (std::size_t j = 0; j < to.size(); ++j) {
    if (i < from.size() && from[i] == to[j]) {
      ++i;
    } else if (to[j].is(1)) {
      added.push_back(static_cast<std::int64_t>(j));
    } else {
      return std::nullopt;
    }
  }
  if (i != from.size()) return std::nullopt;
  return added;
}

std::optional<UnitAxes> unit_axes(const Shape& from, const Shape& to) {
  if (const auto added = added_units(from, to)) return UnitAxes{"Unsqueeze", *added};
  if (const auto dropped = added_units(to, from)) return UnitAxes{"Squeeze", *dropped};
  return std::nullopt;
}

// The target of the chain's last Reshape, usable for any input with the same elements.
std::optional<ValueId> own_target(const Rewriter& r, const Node& last) {
  if (!last.is("Reshape")) return std::nullopt;
  const auto shape = r.shape(last.output(0));
  const auto content = r.content(last.input(1));
  if (!shape || !content) return std::nullopt;
  for (std::size_t i = 0; i < shape->size(); ++i) {
    const Expr element = content->substitute({{0, Expr(static_cast<std::int64_t>(i))}});
    // 0 may mean "as in the input", which is about to change.
    if (element.is(0) || (!element.is(-1) && !(element == (*shape)[i]))) return std::nullopt;
  }
  return last.input(1);
}

bool emit(Rewriter& r, NodeId last, ValueId source, const Plan& plan) {
  const Shape to = *r.shape(r.node(last).output(0));
  if (plan.length() == 0) return r.bypass(r.node(last).output(0), source);
  // The target first: where it can't be had, nothing has changed.
  std::optional<ValueId> target;
  std::optional<UnitAxes> units;
  if (plan.view_last) {
    if (plan.length() == 1) units = unit_axes(*r.shape(source), to);
    if (!units) target = own_target(r, r.node(last));
    if (!units && !target) target = shape_value(r, last, to, {source});
    if (!units && !target) return false;
  }
  ValueId v = source;
  if (plan.reshape_first) {
    const auto first = shape_value(r, last, *plan.reshape_first, {source});
    if (!first) return false;
    v = r.insert(last, "Reshape", {v, *first}, {{"allowzero", std::int64_t{0}}});
  }
  if (!plan.view_last) {
    r.rewrite(last, "", "Transpose", {v}, {{"perm", plan.perm}});
    return true;
  }
  if (!plan.perm.empty()) v = r.insert(last, "Transpose", {v}, {{"perm", plan.perm}});
  if (units) {
    r.rewrite(last, "", units->op, {v, r.add_ints(units->axes, "axes")});
  } else {
    r.rewrite(last, "", "Reshape", {v, *target}, {{"allowzero", std::int64_t{0}}});
  }
  return true;
}

void merge(Rewriter& r, NodeId last) {
  Chain chain = chain_to(r, last);
  std::optional<Chain> best;
  std::optional<Plan> best_plan;
  std::ptrdiff_t best_saving = -1;
  while (extend(r, chain)) {
    const auto plan = plan_chain(r, chain);
    if (!plan || !improves(r, chain, *plan)) continue;
    const auto saving = static_cast<std::ptrdiff_t>(chain.nodes.size() - plan->length());
    if (saving <= best_saving) continue;
    best = chain;
    best_plan = plan;
    best_saving = saving;
  }
  if (best) emit(r, last, best->source, *best_plan);
}

}  // namespace

void merge_views(Rewriter& r, PassState& /*state*/) {
  // Backwards, so that the longest chain is seen before its parts.
  for (NodeId n = r.count(); n-- > 0;) {
    if (r.alive(n) && is_view(r.node(n))) merge(r, n);
  }
}

}  // namespace kvik::graph
