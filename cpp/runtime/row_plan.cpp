#include "runtime/row_plan.h"

#include <algorithm>
#include <optional>
#include <string>

#include "base/checked.h"
#include "kvik/error.h"
#include "runtime/arena_plan.h"

namespace kvik::runtime {

using graph::Expr;
using graph::Graph;
using graph::Node;
using graph::NodeId;
using graph::RowGraph;
using graph::Value;
using graph::ValueId;

namespace {

[[noreturn]] void refuse(const Value& value, const std::string& what) {
  throw Error(ErrorCode::kUnsupported, "value '" + value.name + "': " + what);
}

// Whether a node reads or leaves something beside other rows.
bool meets_other_rows(const Node& node) {
  return node.is("RowAttention", "kvik") || node.is("RowRecurrent", "kvik");
}

// Follows what depends on the tokens and positions, and what an attention needs.
struct Parts {
  explicit Parts(const RowGraph& rows);
  std::vector<Part> of_node;
  std::vector<Part> of_value;  // of its producer
};

Parts::Parts(const RowGraph& rows) {
  const Graph& graph = rows.graph;
  of_node.assign(graph.nodes.size(), Part::kConstant);
  of_value.assign(graph.values.size(), Part::kConstant);
  const auto at = [](ValueId id) { return static_cast<std::size_t>(id); };
  for (const ValueId id : {rows.tokens, rows.positions, rows.types}) {
    if (id != graph::kNoValue) of_value[at(id)] = Part::kBody;
  }
  // Forward: everything that depends on a row is a candidate for the tail.
  for (std::size_t n = 0; n < graph.nodes.size(); ++n) {
    const Node& node = graph.nodes[n];
    bool dependent = meets_other_rows(node);
    for (const ValueId id : node.inputs) {
      dependent = dependent || (id != graph::kNoValue && of_value[at(id)] != Part::kConstant);
    }
    if (!dependent) continue;
    of_node[n] = Part::kTail;
    for (const ValueId id : node.outputs) {
      if (id != graph::kNoValue) of_value[at(id)] = Part::kTail;
    }
  }
  // Backward: what an attention or a recurrent layer needs is of the body.
  std::vector<bool> needed(graph.values.size(), false);
  for (std::size_t n = graph.nodes.size(); n-- > 0;) {
    const Node& node = graph.nodes[n];
    if (of_node[n] == Part::kConstant) continue;
    bool body = meets_other_rows(node);
    for (const ValueId id : node.outputs) {
      body = body || (id != graph::kNoValue && needed[at(id)]);
    }
    if (!body) continue;
    of_node[n] = Part::kBody;
    for (const ValueId id : node.outputs) {
      if (id != graph::kNoValue) of_value[at(id)] = Part::kBody;
    }
    for (const ValueId id : node.inputs) {
      if (id != graph::kNoValue) needed[at(id)] = true;
    }
  }
}

// The dimension as fixed + per_row · rows.
void split_dimension(const Value& value, const Expr& dim, const std::optional<Expr>& rows,
                     Slot& slot) {
  if (const auto constant = dim.constant()) {
    slot.fixed.push_back(*constant);
    slot.per_row.push_back(0);
    return;
  }
  const std::optional<Expr> quotient = rows ? graph::exact_div(dim, *rows) : std::nullopt;
  const auto factor = quotient ? quotient->constant() : std::nullopt;
  if (!factor || *factor < 1) {
    refuse(value, "a dimension is " + dim.str() + ", which is no multiple of the number of rows");
  }
  slot.fixed.push_back(0);
  slot.per_row.push_back(*factor);
}

// Whether rows are outermost in memory, so that some of them can be copied out.
bool gatherable(const Slot& slot) {
  int axis = 0;
  while (axis < slot.fixed.rank && slot.per_row[axis] == 0 && slot.fixed[axis] == 1) ++axis;
  if (axis == slot.fixed.rank || slot.per_row[axis] == 0) return false;
  for (int i = axis + 1; i < slot.fixed.rank; ++i) {
    if (slot.per_row[i] != 0) return false;
  }
  return true;
}

class Builder {
 public:
  explicit Builder(const RowGraph& rows)
      : rows_(rows),
        graph_(rows.graph),
        parts_(rows),
        slot_of_(graph_.values.size(), kNoSlot),
        tail_slot_of_(graph_.values.size(), kNoSlot) {
    const auto& shape = graph_.value(rows.tokens).shape;
    if (!shape || shape->size() != 1) {
      refuse(graph_.value(rows.tokens), "the token ids of a row graph must have shape [rows]");
    }
    // The symbol, unless the graph was made for a single row.
    if (!shape->front().constant()) row_symbol_ = shape->front();
  }

  RowPlan build();

 private:
  SlotId add_slot(ValueId id, Part part);
  SlotId body_slot(ValueId id);
  SlotId tail_slot(ValueId id);
  bool tail_can_be_cut() const;
  void add_nodes(Part part, std::vector<PlannedNode>& nodes);

  const RowGraph& rows_;
  const Graph& graph_;
  Parts parts_;
  std::optional<Expr> row_symbol_;
  std::vector<SlotId> slot_of_;
  std::vector<SlotId> tail_slot_of_;
  RowPlan plan_;
};

SlotId Builder::add_slot(ValueId id, Part part) {
  const Value& value = graph_.value(id);
  Slot slot{.value = id, .part = part, .dtype = value.dtype};
  if (value.constant) {
    slot.dtype = value.constant->dtype;
    slot.fixed = value.constant->dims;
    slot.per_row.rank = slot.fixed.rank;
  } else if (part == Part::kConstant) {
    // Computed once; it takes the dimensions that its operator gives it.
  } else {
    if (!value.shape) refuse(value, "its shape is not known");
    if (value.shape->size() > static_cast<std::size_t>(kMaxRank)) {
      refuse(value, "its rank is " + std::to_string(value.shape->size()));
    }
    if (dtype_bits(value.dtype) < 8) {
      refuse(value, std::string("rows of ") + dtype_name(value.dtype) + " are not supported");
    }
    for (const Expr& dim : *value.shape) split_dimension(value, dim, row_symbol_, slot);
    slot.storage = Storage::kArena;
  }
  plan_.slots.push_back(std::move(slot));
  return static_cast<SlotId>(plan_.slots.size()) - 1;
}

SlotId Builder::body_slot(ValueId id) {
  if (id == graph::kNoValue) return kNoSlot;
  SlotId& slot = slot_of_[static_cast<std::size_t>(id)];
  if (slot == kNoSlot) slot = add_slot(id, parts_.of_value[static_cast<std::size_t>(id)]);
  return slot;
}

SlotId Builder::tail_slot(ValueId id) {
  if (id == graph::kNoValue) return kNoSlot;
  if (parts_.of_value[static_cast<std::size_t>(id)] != Part::kBody) return body_slot(id);
  SlotId& slot = tail_slot_of_[static_cast<std::size_t>(id)];
  if (slot == kNoSlot) {
    const SlotId from = body_slot(id);
    slot = add_slot(id, Part::kTail);
    plan_.gathers.push_back({.from = from,
                             .to = slot,
                             .row_bytes = plan_.slots[static_cast<std::size_t>(from)].bytes(1)});
  }
  return slot;
}

// Whether every value that would cross to the tail has its rows outermost.
bool Builder::tail_can_be_cut() const {
  const auto crosses_badly = [&](ValueId id) {
    if (id == graph::kNoValue || parts_.of_value[static_cast<std::size_t>(id)] != Part::kBody) {
      return false;
    }
    const Value& value = graph_.value(id);
    if (!value.shape || value.shape->size() > static_cast<std::size_t>(kMaxRank)) return true;
    Slot slot;
    for (const Expr& dim : *value.shape) split_dimension(value, dim, row_symbol_, slot);
    return !gatherable(slot);
  };
  for (std::size_t n = 0; n < graph_.nodes.size(); ++n) {
    if (parts_.of_node[n] != Part::kTail) continue;
    for (const ValueId id : graph_.nodes[n].inputs) {
      if (crosses_badly(id)) return false;
    }
  }
  return true;
}

void Builder::add_nodes(Part part, std::vector<PlannedNode>& nodes) {
  for (std::size_t n = 0; n < graph_.nodes.size(); ++n) {
    if (parts_.of_node[n] != part) continue;
    PlannedNode planned{.node = static_cast<NodeId>(n)};
    for (const ValueId id : graph_.nodes[n].inputs) {
      planned.inputs.push_back(part == Part::kTail ? tail_slot(id) : body_slot(id));
    }
    for (const ValueId id : graph_.nodes[n].outputs) planned.outputs.push_back(body_slot(id));
    nodes.push_back(std::move(planned));
  }
}

RowPlan Builder::build() {
  plan_.tokens = body_slot(rows_.tokens);
  plan_.positions = body_slot(rows_.positions);
  plan_.types = body_slot(rows_.types);
  if (!tail_can_be_cut()) {
    for (Part& part : parts_.of_node) part = part == Part::kTail ? Part::kBody : part;
    for (Part& part : parts_.of_value) part = part == Part::kTail ? Part::kBody : part;
  }
  add_nodes(Part::kConstant, plan_.constant);
  add_nodes(Part::kBody, plan_.body);
  add_nodes(Part::kTail, plan_.tail);
  const Value& output = graph_.value(rows_.output);
  if (parts_.of_value[static_cast<std::size_t>(rows_.output)] == Part::kConstant) {
    refuse(output, "the output does not depend on the tokens");
  }
  plan_.output = tail_slot(rows_.output);
  const Slot& slot = plan_.slots[static_cast<std::size_t>(plan_.output)];
  if (slot.dtype != DType::kF32) {
    refuse(output, std::string("the output is ") + dtype_name(slot.dtype) + "; expected float32");
  }
  if (!gatherable(slot)) refuse(output, "the output does not have its rows outermost");
  plan_.output_features = slot.bytes(1) / static_cast<std::int64_t>(sizeof(float));
  return std::move(plan_);
}

// The slot whose memory a slot uses.
SlotId root_of(const RowPlan& plan, SlotId id) {
  while (plan.slots[static_cast<std::size_t>(id)].storage == Storage::kAlias) {
    id = plan.slots[static_cast<std::size_t>(id)].alias_of;
  }
  return id;
}

// First and last step of every slot's life, aliases counted for their roots.
std::vector<ArenaBuffer> lifetimes(const RowPlan& plan) {
  std::vector<ArenaBuffer> life(plan.slots.size(), ArenaBuffer{.first = -1, .last = -1});
  int step = 0;
  const auto touch = [&](SlotId id) {
    if (id == kNoSlot) return;
    ArenaBuffer& buffer = life[static_cast<std::size_t>(root_of(plan, id))];
    if (buffer.first < 0) buffer.first = step;
    buffer.last = step;
  };
  touch(plan.tokens);
  touch(plan.positions);
  touch(plan.types);
  const auto walk = [&](const std::vector<PlannedNode>& nodes) {
    for (const PlannedNode& node : nodes) {
      ++step;
      for (const SlotId id : node.outputs) touch(id);
      for (const SlotId id : node.inputs) touch(id);
    }
  };
  walk(plan.body);
  ++step;
  for (const Gather& gather : plan.gathers) {
    touch(gather.from);
    touch(gather.to);
  }
  walk(plan.tail);
  ++step;
  touch(plan.output);
  // When every row is wanted the tail reads the body's rows where they are, ungathered.
  for (const Gather& gather : plan.gathers) {
    ArenaBuffer& from = life[static_cast<std::size_t>(root_of(plan, gather.from))];
    from.last = std::max(from.last, life[static_cast<std::size_t>(root_of(plan, gather.to))].last);
  }
  return life;
}

}  // namespace

Dims Slot::dims(std::int64_t rows) const {
  Dims out = fixed;
  for (int i = 0; i < out.rank; ++i) out[i] += per_row[i] * rows;
  return out;
}

std::int64_t Slot::bytes(std::int64_t rows) const {
  std::int64_t product = 1;
  bool fits = true;
  for (int i = 0; i < fixed.rank && fits; ++i) {
    std::int64_t dim = 0;
    fits = checked_mul(per_row[i], rows, &dim) && checked_add(dim, fixed[i], &dim) &&
           checked_mul(product, dim, &product);
  }
  const auto bytes = fits ? checked_bytes(product, dtype) : std::nullopt;
  if (!bytes) {
    throw Error(ErrorCode::kOutOfMemory,
                "an activation of " + std::to_string(rows) + " rows exceeds 2^63 bytes");
  }
  return *bytes;
}

RowPlan make_row_plan(const RowGraph& rows) {
  return Builder(rows).build();
}

void place_slots(RowPlan& plan, std::int64_t max_rows, bool reuse) {
  std::vector<ArenaBuffer> life = lifetimes(plan);
  std::vector<ArenaBuffer> placed;
  std::vector<SlotId> owner;
  for (std::size_t i = 0; i < plan.slots.size(); ++i) {
    if (plan.slots[i].storage != Storage::kArena || life[i].first < 0) continue;
    life[i].bytes = plan.slots[i].bytes(max_rows);
    if (!reuse) {
      life[i].first = 0;
      life[i].last = 1;
    }
    placed.push_back(life[i]);
    owner.push_back(static_cast<SlotId>(i));
  }
  plan.arena_bytes = plan_arena(placed);
  for (std::size_t i = 0; i < placed.size(); ++i) {
    plan.slots[static_cast<std::size_t>(owner[i])].offset = placed[i].offset;
  }
}

std::int64_t index_limit(const Graph& graph, ValueId ids) {
  if (ids == graph::kNoValue) return 0;
  std::vector<bool> same(graph.values.size(), false);  // the ids themselves, in another shape
  same[static_cast<std::size_t>(ids)] = true;
  std::int64_t limit = 0;
  for (const Node& node : graph.nodes) {
    const auto is_ids = [&](std::size_t i) {
      const ValueId id = node.input(i);
      return id != graph::kNoValue && same[static_cast<std::size_t>(id)];
    };
    const bool same_elements = node.is("Reshape") || node.is("Squeeze") || node.is("Unsqueeze") ||
                               node.is("Flatten") || node.is("Identity") || node.is("Cast");
    if (same_elements && is_ids(0) && node.output(0) != graph::kNoValue) {
      same[static_cast<std::size_t>(node.output(0))] = true;
    }
    const bool embedding = node.is("Embedding", "kvik");
    if ((!embedding && !node.is("Gather")) || !is_ids(1)) continue;
    const graph::ConstantTensor* table = graph.constant(node.input(0));
    if (table == nullptr || table->dims.rank == 0) continue;
    std::int64_t axis = embedding ? 0 : node.int_attr("axis", 0);  // that of the scales is another
    if (axis < 0) axis += table->dims.rank;
    if (axis < 0 || axis >= table->dims.rank) continue;
    const std::int64_t size = table->dims[static_cast<int>(axis)];
    limit = limit == 0 ? size : std::min(limit, size);
  }
  // What the graph takes as int32 must fit it.
  constexpr std::int64_t kInt32Limit = std::int64_t{INT32_MAX} + 1;
  return limit == 0 && graph.value(ids).dtype == DType::kI32 ? kInt32Limit : limit;
}

}  // namespace kvik::runtime
