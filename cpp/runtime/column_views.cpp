#include "runtime/column_views.h"

#include <algorithm>
#include <vector>

namespace kvik::runtime {

namespace {

using graph::Graph;
using graph::Node;

class ColumnViews {
 public:
  ColumnViews(RowPlan& plan, const Graph& graph,
              std::span<const std::unique_ptr<ops::OpKernel>> kernels)
      : plan_(plan),
        graph_(graph),
        kernels_(kernels),
        readers_(plan.slots.size()),
        views_(plan.slots.size()),
        leaves_(plan.slots.size(), false) {
    for (const auto* nodes : {&plan.body, &plan.tail}) {
      for (const PlannedNode& node : *nodes) {
        for (std::size_t i = 0; i < node.inputs.size(); ++i) {
          if (node.inputs[i] != kNoSlot) readers_[at(node.inputs[i])].push_back({&node, i});
        }
      }
    }
    for (std::size_t i = 0; i < plan.slots.size(); ++i) {
      const Slot& s = plan.slots[i];
      if (s.storage == Storage::kAlias) views_[at(s.alias_of)].push_back(static_cast<SlotId>(i));
    }
    for (const Gather& gather : plan.gathers) leaves_[at(gather.from)] = true;
    if (plan.output != kNoSlot) leaves_[at(plan.output)] = true;
  }

  void visit(const PlannedNode& planned) {
    const Node& node = graph_.nodes[static_cast<std::size_t>(planned.node)];
    if (!node.is("Split") || planned.inputs[0] == kNoSlot) return;
    const SlotId whole = planned.inputs[0];
    if (!divides_columns(node, slot(whole)) || slot(whole).row_stride != 0) return;
    // All of them or none: a node either runs or is a view.
    for (const SlotId id : planned.outputs) {
      if (id == kNoSlot || slot(id).storage != Storage::kArena) return;
      for (const SlotId view : with_views(id)) {
        if (!readable_apart(view)) return;
      }
    }
    std::int64_t first = 0;  // column, in bytes of a row
    for (const SlotId id : planned.outputs) {
      Slot& part = slot(id);
      part.storage = Storage::kAlias;
      part.alias_of = whole;
      part.alias_offset = first;
      for (const SlotId view : with_views(id)) slot(view).row_stride = row_elements(slot(whole));
      first += part.bytes(1);
    }
  }

 private:
  static std::size_t at(SlotId id) { return static_cast<std::size_t>(id); }
  Slot& slot(SlotId id) { return plan_.slots[at(id)]; }
  static std::int64_t row_elements(const Slot& s) { return s.dims(1).elements(); }

  // Dimension 0 is the rows, and nothing else depends on them.
  static bool is_rows(const Slot& s) {
    if (s.fixed.rank == 0 || s.fixed[0] != 0 || s.per_row[0] != 1) return false;
    for (int i = 1; i < s.per_row.rank; ++i) {
      if (s.per_row[i] != 0) return false;
    }
    return true;
  }

  // Whether the parts of a row lie one behind the other: the axis has only ones between it and the
  // rows. Elements are whole bytes.
  static bool divides_columns(const Node& node, const Slot& whole) {
    if (!is_rows(whole) || dtype_bits(whole.dtype) % 8 != 0) return false;
    const std::int64_t attribute = node.int_attr("axis", 0);
    const std::int64_t axis = attribute < 0 ? attribute + whole.fixed.rank : attribute;
    if (axis < 1 || axis >= whole.fixed.rank) return false;
    return whole.fixed.elements(1, static_cast<int>(axis)) == 1;
  }

  // The slot, the views of it, theirs and so on.
  std::vector<SlotId> with_views(SlotId id) const {
    std::vector<SlotId> all{id};
    for (std::size_t i = 0; i < all.size(); ++i) {
      const std::vector<SlotId>& more = views_[at(all[i])];
      all.insert(all.end(), more.begin(), more.end());
    }
    return all;
  }

  // Whether all that reads the slot, other than through views, could read rows that lie apart.
  bool readable_apart(SlotId id) {
    if (!is_rows(slot(id)) || leaves_[at(id)]) return false;
    return std::all_of(readers_[at(id)].begin(), readers_[at(id)].end(), [&](const Reader& reader) {
      const bool view =
          std::any_of(reader.node->outputs.begin(), reader.node->outputs.end(), [&](SlotId out) {
            return out != kNoSlot && slot(out).storage == Storage::kAlias &&
                   slot(out).alias_of == id;
          });
      const auto& kernel = *kernels_[static_cast<std::size_t>(reader.node->node)];
      return view || kernel.accepts_strided(static_cast<int>(reader.input));
    });
  }

  struct Reader {
    const PlannedNode* node;
    std::size_t input;
  };

  RowPlan& plan_;
  const Graph& graph_;
  std::span<const std::unique_ptr<ops::OpKernel>> kernels_;
  std::vector<std::vector<Reader>> readers_;  // by slot
  std::vector<std::vector<SlotId>> views_;    // by slot
  std::vector<bool> leaves_;                  // for the caller, or for the tail: by slot
};

}  // namespace

void view_columns(RowPlan& plan, const Graph& graph,
                  std::span<const std::unique_ptr<ops::OpKernel>> kernels) {
  ColumnViews views(plan, graph, kernels);
  for (const auto* nodes : {&plan.body, &plan.tail}) {
    for (const PlannedNode& planned : *nodes) views.visit(planned);
  }
}

}  // namespace kvik::runtime
