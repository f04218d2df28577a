// Axes as ordered lists of atoms: how Reshape, Transpose and their kin rearrange elements,
// symbolically. A value's elements are numbered by the flat list of the atoms of all its axes;
// Reshape regroups the list, Transpose permutes axes, and neither ever computes.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "graph/expr.h"

namespace kvik::graph {

struct Atom {
  int role = 0;  // chosen by the user of this header: which original axis, or what it means
  Expr size;     // never the constant 1: axes of size 1 have no atoms
  bool broadcast = false;  // all indices along it give the same element
  bool operator==(const Atom& other) const {
    return role == other.role && broadcast == other.broadcast && size == other.size;
  }
};

using Axis = std::vector<Atom>;
using Layout = std::vector<Axis>;

Expr axis_size(const Axis& axis);

// Regroups the atoms, in order, into axes of the sizes `to`. An atom is split where a target takes
// an exact divisor of its size (4*batch into batch and 4; both parts keep its role); adjacent atoms
// of one role, split before, are joined again. Nothing when a target's boundary cuts through an
// atom in any other way.
std::optional<Layout> regroup(const Layout& from, std::span<const Expr> to);

// Joins adjacent atoms of equal role and broadcast flag whose sizes are constants, so that layouts
// that mean the same compare equal. Only valid for roles whose atoms are interchangeable pieces of
// one contiguous run (features); `joinable(role)` says which.
Layout joined(const Layout& layout, int joinable_role);

}  // namespace kvik::graph
