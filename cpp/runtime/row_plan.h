// The plan of a row program: what is computed once, what for every row, what for the wanted rows
// alone, and where each value lies.
//
// A row graph's nodes fall into three parts:
//   constant  depend on neither tokens nor positions: run once, when the plan is made;
//   body      what attentions and recurrent layers need (directly or not), and they: for every row;
//   tail      the rest, which is row-wise: for the rows whose output is wanted. The values that
//             cross from body to tail are gathered for those rows first.
// So the vocabulary projection sees only the rows whose logits are asked for, and so does all that
// follows the last of them.
#pragma once

#include <cstdint>
#include <vector>

#include "base/dims.h"
#include "graph/passes/prove_rowwise.h"
#include "kvik/dtype.h"

namespace kvik::runtime {

using SlotId = std::int32_t;
inline constexpr SlotId kNoSlot = -1;

enum class Part : std::uint8_t { kConstant, kBody, kTail };

// Where a slot's elements live.
enum class Storage : std::uint8_t {
  kConstant,  // in the graph, or computed once and owned by the program
  kArena,     // at `offset`
  kAlias,     // those of slot `alias_of`, or some columns of it
  kLogits,    // in the caller's buffer
};

// One tensor of the program. A value has one slot, and a second one if it crosses to the tail:
// the gathered rows.
struct Slot {
  graph::ValueId value = graph::kNoValue;
  Part part = Part::kConstant;
  DType dtype = DType::kUndefined;
  // A dimension is fixed[i] + per_row[i] · rows (one of the two is 0).
  Dims fixed;
  Dims per_row;
  Storage storage = Storage::kConstant;
  SlotId alias_of = kNoSlot;
  std::int64_t alias_offset = 0;  // of an alias's first element, in bytes
  std::int64_t row_stride = 0;    // of Tensor
  std::int64_t offset = 0;

  Dims dims(std::int64_t rows) const;
  std::int64_t bytes(std::int64_t rows) const;  // throws kOutOfMemory on overflow
};

struct PlannedNode {
  graph::NodeId node =
      graph::kNoNode;           // the first of those that are one step (see join_products.h)
  std::vector<SlotId> inputs;   // kNoSlot where left out
  std::vector<SlotId> outputs;  // kNoSlot where left out
  // Makes nothing but views of its inputs: at run time pointers are copied, no kernel runs.
  bool view = false;
};

struct Gather {
  SlotId from = kNoSlot;  // [rows, ...] of the body
  SlotId to = kNoSlot;    // [wanted, ...] of the tail
  std::int64_t row_bytes = 0;
};

struct RowPlan {
  std::vector<Slot> slots;
  std::vector<PlannedNode> constant;
  std::vector<PlannedNode> body;
  std::vector<PlannedNode> tail;
  std::vector<Gather> gathers;
  SlotId tokens = kNoSlot;
  SlotId positions = kNoSlot;
  SlotId types = kNoSlot;   // kNoSlot where nothing reads them
  SlotId output = kNoSlot;  // in the tail
  std::int64_t output_features = 0;
  std::int64_t arena_bytes = 0;
};

// Parts, slots and shapes; storage as if nothing could be shared (every slot an arena place of its
// own). Throws kvik::Error(kUnsupported) that names the value when the graph is not one of rows.
RowPlan make_row_plan(const graph::RowGraph& rows);

// Assigns `offset` to every slot in the arena, for up to max_rows rows; slots whose lifetimes do
// not meet share memory when `reuse` is set. Slots were marked kAlias before, where the operator
// makes views. Sets arena_bytes.
void place_slots(RowPlan& plan, std::int64_t max_rows, bool reuse);

// The smallest number of rows among the tables that an input of ids indexes directly, or 0 when
// there is none: ids must be below it.
std::int64_t index_limit(const graph::Graph& graph, graph::ValueId ids);

}  // namespace kvik::runtime
