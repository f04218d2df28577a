#include "runtime/column_views.h"

#include <algorithm>
#include <array>
#include <vector>

namespace kvik::runtime {

namespace {

using graph::Graph;
using graph::Node;

class ColumnViews {
 public:
  ColumnViews(RowPlan& plan, const Graph& graph,
              std::span<const std::unique_ptr<ops::OpKernel>> kernels)
      : plan_(plan), graph_(graph), kernels_(kernels) {}

  void visit(const PlannedNode& planned) {
    const Node& node = graph_.nodes[static_cast<std::size_t>(planned.node)];
    if (!node.is("Split") || planned.inputs[0] == kNoSlot) return;
    const SlotId whole = planned.inputs[0];
    if (!divides_columns(node, slot(whole)) || slot(whole).row_stride != 0) return;
    // All of them or none: a node either runs or is a view.
    for (const SlotId id : planned.outputs) {
      if (id == kNoSlot || slot(id).storage != Storage::kArena || !readable_apart(id)) return;
    }
    std::int64_t first = 0;  // column, in bytes of a row
    for (const SlotId id : planned.outputs) {
      Slot& part = slot(id);
      part.storage = Storage::kAlias;
      part.alias_of = whole;
      part.alias_offset = first;
      set_stride(id, row_elements(slot(whole)));
      first += part.bytes(1);
    }
  }

 private:
  Slot& slot(SlotId id) { return plan_.slots[static_cast<std::size_t>(id)]; }
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

  // Whether all that reads the slot could read rows that lie apart.
  bool readable_apart(SlotId id) {
    if (!is_rows(slot(id)) || id == plan_.output) return false;
    for (const Gather& gather : plan_.gathers) {
      if (gather.from == id) return false;
    }
    for (const auto* nodes : {&plan_.body, &plan_.tail}) {
      for (const PlannedNode& reader : *nodes) {
        if (!reads_apart(reader, id)) return false;
      }
    }
    return true;
  }

  bool reads_apart(const PlannedNode& reader, SlotId id) {
    for (std::size_t i = 0; i < reader.inputs.size(); ++i) {
      if (reader.inputs[i] != id) continue;
      bool view = false;
      for (const SlotId out : reader.outputs) {
        if (out == kNoSlot || slot(out).storage != Storage::kAlias || slot(out).alias_of != id) {
          continue;
        }
        if (!readable_apart(out)) return false;
        view = true;
      }
      const auto& kernel = *kernels_[static_cast<std::size_t>(reader.node)];
      if (!view && !kernel.accepts_strided(static_cast<int>(i))) return false;
    }
    return true;
  }

  // Of a view and the views of it.
  void set_stride(SlotId id, std::int64_t stride) {
    slot(id).row_stride = stride;
    for (std::size_t i = 0; i < plan_.slots.size(); ++i) {
      if (plan_.slots[i].storage == Storage::kAlias && plan_.slots[i].alias_of == id) {
        set_stride(static_cast<SlotId>(i), stride);
      }
    }
  }

  RowPlan& plan_;
  const Graph& graph_;
  std::span<const std::unique_ptr<ops::OpKernel>> kernels_;
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
