#include "graph/axes.h"

namespace kvik::graph {

Expr axis_size(const Axis& axis) {
  Expr size(1);
  for (const Atom& atom : axis) size = size * atom.size;
  return size;
}

std::optional<Layout> regroup(const Layout& from, std::span<const Expr> to) {
  std::vector<Atom> pending;  // reversed: the next atom is at the back
  for (std::size_t a = from.size(); a-- > 0;) {
    for (std::size_t i = from[a].size(); i-- > 0;) pending.push_back(from[a][i]);
  }
  Layout out;
  for (const Expr& target : to) {
    Axis axis;
    Expr left = target;
    while (!left.is(1)) {
      if (pending.empty()) return std::nullopt;
      Atom atom = pending.back();
      pending.pop_back();
      if (const auto rest = exact_div(left, atom.size)) {
        axis.push_back(atom);
        left = *rest;
        continue;
      }
      // The target takes only the outer part of this atom.
      const auto rest = left.bounds().low >= 1 ? exact_div(atom.size, left) : std::nullopt;
      if (!rest) return std::nullopt;
      Atom inner = atom;
      inner.size = *rest;
      pending.push_back(inner);
      atom.size = left;
      axis.push_back(atom);
      left = Expr(1);
    }
    out.push_back(std::move(axis));
  }
  if (!pending.empty()) return std::nullopt;
  return out;
}

Layout joined(const Layout& layout, int joinable_role) {
  Layout out;
  for (const Axis& axis : layout) {
    Axis merged;
    for (const Atom& atom : axis) {
      if (!merged.empty() && atom.role == joinable_role && merged.back().role == atom.role &&
          merged.back().broadcast == atom.broadcast) {
        merged.back().size = merged.back().size * atom.size;
      } else {
        merged.push_back(atom);
      }
    }
    out.push_back(std::move(merged));
  }
  return out;
}

}  // namespace kvik::graph
