#include "runtime/row_program.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "base/checked.h"
#include "kvik/error.h"
#include "ops/packed_weights.h"
#include "ops/row_attention.h"
#include "ops/row_recurrent.h"
#include "runtime/column_views.h"
#include "runtime/join_products.h"
#include "runtime/load.h"

namespace kvik::runtime {

namespace {

constexpr std::int64_t kProbeRows = 2;  // one row would make views of what many rows must move

// Of the attentions and recurrent layers that read the sequence itself, or of the attentions that
// read its source.
std::vector<KvLayerShape> layer_shapes(const graph::RowGraph& rows, bool source) {
  std::vector<KvLayerShape> shapes;
  for (const graph::RowAttention& layer : rows.attention) {
    if (layer.kv_heads < 1 || layer.head_dim < 1 || layer.value_dim < 1) {
      throw Error(ErrorCode::kUnsupported, "an attention without heads or head dimensions");
    }
    if ((layer.mixing == graph::Mixing::kSource) != source) continue;
    shapes.push_back({layer.kv_heads, layer.head_dim, layer.value_dim});
  }
  for (const graph::RowRecurrent& layer : rows.recurrent) {
    if (source || !layer.keeps_states) continue;
    shapes.push_back({.kv_heads = 1, .value_dim = static_cast<int>(layer.width), .state = true});
  }
  return shapes;
}

// The first table of each attention, in its own layout; then that of each recurrent layer, 0 where
// it has none.
std::vector<std::int64_t> tables_of(const graph::RowGraph& rows, const KvLayout& own,
                                    const KvLayout& source) {
  std::vector<std::int64_t> tables;
  std::size_t next_own = 0, next_source = 0;
  for (const graph::RowAttention& layer : rows.attention) {
    const bool other = layer.mixing == graph::Mixing::kSource;
    tables.push_back(other ? source.layer_tables()[next_source++] : own.layer_tables()[next_own++]);
  }
  for (const graph::RowRecurrent& layer : rows.recurrent) {
    tables.push_back(layer.keeps_states ? own.layer_tables()[next_own++] : 0);
  }
  return tables;
}

// Floats of what recurrent layers take from a source.
std::int64_t source_states(const graph::RowGraph& rows) {
  std::int64_t end = 0;
  for (const graph::RowRecurrent& layer : rows.recurrent) {
    const std::int64_t each = layer.width;  // no fewer than one part of it
    for (const std::int64_t place : {layer.source_h, layer.source_c}) {
      if (place >= 0) end = std::max(end, place + each);
    }
  }
  return end;
}

bool aligned_for(const void* data, DType dtype) {
  const std::uintptr_t unit = std::max<std::size_t>(dtype_bits(dtype) / 8, 1);
  return reinterpret_cast<std::uintptr_t>(data) % unit == 0;
}

}  // namespace

// What kernels see. While the program is being made (`probing`), views are noted instead of
// copied, and constant nodes get memory of their own.
class RowProgram::Context final : public ops::OpContext {
 public:
  explicit Context(RowProgram& program) : program_(program) {}

  void enter(const PlannedNode& node) { node_ = &node; }
  void set_batch(const ops::RowBatch* batch) { batch_ = batch; }
  void set_probing(bool probing) { probing_ = probing; }

  int input_count() const override { return static_cast<int>(node_->inputs.size()); }
  int output_count() const override { return static_cast<int>(node_->outputs.size()); }
  bool has_input(int i) const override { return input_slot(i) != kNoSlot; }
  bool wants_output(int i) const override { return output_slot(i) != kNoSlot; }

  const Tensor& input(int i) const override {
    const SlotId id = input_slot(i);
    if (id == kNoSlot) {
      throw Error(ErrorCode::kInvalidModel, "input " + std::to_string(i) + " is missing");
    }
    return program_.tensor(id);
  }

  Tensor& output(int i, DType dtype, const Dims& dims) override {
    const SlotId id = node_->outputs[static_cast<std::size_t>(i)];
    Slot& slot = program_.slot(id);
    Tensor& tensor = program_.tensor(id);
    if (slot.part == Part::kConstant) {
      own(id, dtype, dims);
      return tensor;
    }
    if (slot.storage == Storage::kAlias) {
      throw Error(ErrorCode::kInternal, "made a view when planned and no view now");
    }
    expect(slot, tensor, i, dtype, dims);
    tensor.dims = dims;
    return tensor;
  }

  void alias(int i, int j, const Dims& dims) override {
    const SlotId to = node_->outputs[static_cast<std::size_t>(i)];
    const SlotId from = node_->inputs[static_cast<std::size_t>(j)];
    const Tensor source = input(j);
    Slot& slot = program_.slot(to);
    Tensor& target = program_.tensor(to);
    if (dims.elements() != source.elements()) {
      throw Error(ErrorCode::kInternal, "a view of " + source.dims.str() + " as " + dims.str());
    }
    if (slot.part == Part::kConstant) {
      target = {.dtype = source.dtype, .dims = dims, .data = source.data};
      slot.dtype = source.dtype;
      return;
    }
    expect(slot, target, i, source.dtype, dims);
    if (probing_ && slot.storage == Storage::kArena) {
      slot.storage = Storage::kAlias;
      slot.alias_of = from;
    }
    if (slot.storage == Storage::kAlias && slot.alias_of == from) {
      target.data = source.data;
    } else {
      // Only for these numbers of rows is it a view; the plan has a place for a copy.
      const auto bytes = checked_bytes(source.elements(), source.dtype);
      std::memcpy(target.data, source.data, static_cast<std::size_t>(bytes.value_or(0)));
    }
    target.dims = dims;
  }

  void* workspace(std::size_t bytes) override {
    if (bytes > scratch_.size()) {
      std::size_t size = 4096;
      while (size < bytes && size < std::numeric_limits<std::size_t>::max() / 2) size *= 2;
      scratch_ = AlignedBuffer();  // first give back, then take
      scratch_ = AlignedBuffer(std::max(size, bytes));
    }
    return scratch_.data();
  }

  const ops::RowBatch* row_batch() const override { return batch_; }
  ThreadPool& pool() override { return program_.engine_.pool; }
  const kernels::KernelTable& kernels() const override { return program_.engine_.kernels; }

 private:
  SlotId input_slot(int i) const {
    return static_cast<std::size_t>(i) < node_->inputs.size()
               ? node_->inputs[static_cast<std::size_t>(i)]
               : kNoSlot;
  }
  SlotId output_slot(int i) const {
    return static_cast<std::size_t>(i) < node_->outputs.size()
               ? node_->outputs[static_cast<std::size_t>(i)]
               : kNoSlot;
  }

  // The operator must give the dtype and dimensions that the plan was made for.
  static void expect(const Slot& slot, const Tensor& planned, int i, DType dtype,
                     const Dims& dims) {
    if (dtype == slot.dtype && dims == planned.dims) return;
    throw Error(ErrorCode::kInternal, "output " + std::to_string(i) + " is " + dtype_name(dtype) +
                                          dims.str() + " but was planned as " +
                                          dtype_name(slot.dtype) + planned.dims.str());
  }

  // Memory for a constant that a node computes.
  void own(SlotId id, DType dtype, const Dims& dims) {
    const auto elements = checked_elements(dims.span());
    const auto bytes = elements ? checked_bytes(*elements, dtype) : std::nullopt;
    if (!bytes) throw Error(ErrorCode::kOutOfMemory, "a constant of " + dims.str() + " elements");
    program_.owned_.emplace_back(static_cast<std::size_t>(*bytes));
    program_.tensor(id) = {.dtype = dtype, .dims = dims, .data = program_.owned_.back().data()};
    program_.slot(id).dtype = dtype;
  }

  RowProgram& program_;
  const PlannedNode* node_ = nullptr;
  const ops::RowBatch* batch_ = nullptr;
  bool probing_ = false;
  AlignedBuffer scratch_;
};

RowProgram::RowProgram(std::shared_ptr<const graph::RowGraph> rows, const Engine& engine,
                       int max_rows, CacheType cache)
    : rows_(std::move(rows)),
      engine_(engine),
      max_rows_(max_rows),
      plan_(make_row_plan(*rows_)),
      layout_(layer_shapes(*rows_, false), cache, rows_->mixing == graph::Mixing::kWhole),
      source_layout_(layer_shapes(*rows_, true), cache),
      layer_tables_(tables_of(*rows_, layout_, source_layout_)),
      tensors_(plan_.slots.size()),
      context_(std::make_unique<Context>(*this)) {
  make_kernels();
  check_page_size();
  join_products(plan_, made_);
  bind_constants();
  context_->set_probing(true);
  run_nodes(plan_.constant);
  probe();
  context_->set_probing(false);
  place_slots(plan_, max_rows_, /*reuse=*/true);
  bind_slots();
  for (const auto* nodes : {&plan_.body, &plan_.tail}) {
    for (const PlannedNode& node : *nodes) {
      const auto& in = node.inputs;
      reads_types_ = reads_types_ || (plan_.types != kNoSlot &&
                                      std::find(in.begin(), in.end(), plan_.types) != in.end());
    }
  }
}

void RowProgram::grow(int rows) {
  if (rows <= max_rows_) return;
  const RowPlan before = plan_;
  try {
    place_slots(plan_, rows, /*reuse=*/true);
    bind_arena(AlignedBuffer(static_cast<std::size_t>(plan_.arena_bytes)));
  } catch (...) {
    plan_ = before;
    throw;
  }
  max_rows_ = rows;
}

RowProgram::~RowProgram() = default;

std::int64_t RowProgram::constant_bytes() const {
  std::int64_t bytes = 0;
  for (const AlignedBuffer& buffer : owned_) bytes += static_cast<std::int64_t>(buffer.size());
  return bytes;
}

// Models keep far more weights than keys and values of one block; what does not is a small file
// that asks for much memory.
void RowProgram::check_page_size() const {
  constexpr std::int64_t kSmall = std::int64_t{64} << 20, kTimesWeights = 4;
  const std::int64_t page = std::max(layout_.page_bytes(), source_layout_.page_bytes());
  if (page <= kSmall || page / kTimesWeights <= weigh(rows_->graph).bytes) return;
  throw Error(ErrorCode::kUnsupported,
              "the keys, values and states of " + std::to_string(kernels::kKvBlock) +
                  " tokens take " + std::to_string(page) + " bytes, more than " +
                  std::to_string(kTimesWeights) + " times the model's weights");
}

void RowProgram::make_kernels() {
  const graph::Graph& graph = rows_->graph;
  made_.resize(graph.nodes.size());
  for (std::size_t n = 0; n < graph.nodes.size(); ++n) {
    const graph::Node& node = graph.nodes[n];
    const ops::NodeInfo info{graph, node, engine_.kernels, engine_.pool, engine_.weights};
    if (node.is("RowAttention", "kvik")) {
      const auto layer = static_cast<std::size_t>(node.int_attr("layer", -1));
      if (layer >= rows_->attention.size()) {
        throw Error(ErrorCode::kInternal, node.label() + ": there is no attention layer " +
                                              std::to_string(node.int_attr("layer", -1)));
      }
      made_[n] = ops::make_row_attention(rows_->attention[layer], info);
      continue;
    }
    if (node.is("RowRecurrent", "kvik")) {
      const auto layer = static_cast<std::size_t>(node.int_attr("layer", -1));
      if (layer >= rows_->recurrent.size()) {
        throw Error(ErrorCode::kInternal, node.label() + ": there is no recurrent layer " +
                                              std::to_string(node.int_attr("layer", -1)));
      }
      made_[n] =
          ops::make_row_recurrent(rows_->recurrent[layer], rows_->attention.size() + layer, info);
      continue;
    }
    if (node.is("EvalIndex", "kvik")) {
      made_[n] = ops::make_eval_index(info);
      continue;
    }
    const ops::MakeKernel make = ops::registry().find(node.domain, node.op);
    if (make == nullptr) {
      throw Error(ErrorCode::kUnsupported, node.label() + ": no kernel for this operator");
    }
    try {
      made_[n] = make(info);
    } catch (const Error& error) {
      throw Error(error.code(), node.label() + ": " + error.what());
    }
  }
}

// Points constants at the graph's own elements, or at an aligned copy where a kernel reads them
// and the file has them unaligned. Weights that kernels have packed are not copied.
void RowProgram::bind_constants() {
  std::vector<bool> read(plan_.slots.size(), false);
  for (const auto* nodes : {&plan_.constant, &plan_.body, &plan_.tail}) {
    for (const PlannedNode& planned : *nodes) {
      const ops::OpKernel& kernel = *made_[static_cast<std::size_t>(planned.node)];
      for (std::size_t i = 0; i < planned.inputs.size(); ++i) {
        if (planned.inputs[i] == kNoSlot) continue;
        if (kernel.needs_aligned(static_cast<int>(i))) {
          read[static_cast<std::size_t>(planned.inputs[i])] = true;
        }
      }
    }
  }
  for (std::size_t i = 0; i < plan_.slots.size(); ++i) {
    const Slot& own = plan_.slots[i];
    tensors_[i].dtype = own.dtype;
    tensors_[i].dims = own.fixed;
    const graph::ConstantTensor* constant = rows_->graph.constant(own.value);
    if (constant == nullptr || constant->data.empty()) continue;
    // Kernels do not write to their inputs; Tensor has one pointer type for both.
    tensors_[i].data = const_cast<std::byte*>(constant->data.data());
    if (read[i] && !aligned_for(constant->data.data(), constant->dtype)) {
      owned_.emplace_back(constant->data.size());
      std::memcpy(owned_.back().data(), constant->data.data(), constant->data.size());
      tensors_[i].data = owned_.back().data();
    }
  }
}

// Runs two rows of one new sequence, each slot with a place of its own, and learns which outputs
// are views.
void RowProgram::probe() {
  place_slots(plan_, kProbeRows, /*reuse=*/false);
  bind_slots();
  KvCache cache(std::make_shared<KvPool>(layout_));
  cache.reserve(kProbeRows);
  KvCache source(std::make_shared<KvPool>(source_layout_));
  source.reserve(kProbeRows);
  std::array<ops::RowRun, 1> runs{cache.run(0, kProbeRows, 0)};
  runs[0].source = source.tables();
  runs[0].source_length = kProbeRows;
  const std::vector<float> states(static_cast<std::size_t>(source_states(*rows_)));
  runs[0].source_states = states.data();
  const std::array<std::int64_t, 2> tokens{0, 0};
  const std::array<std::int64_t, 2> positions{0, 1};
  // One wanted row of two, so that the gather is seen too.
  const std::array<std::int64_t, 1> wanted{1};
  std::vector<float> output(static_cast<std::size_t>(plan_.output_features));
  run({.tokens = tokens,
       .positions = positions,
       .batch = {.runs = runs, .rows = kProbeRows, .layer_tables = layer_tables_},
       .wanted = wanted,
       .output = output.data()});
  view_columns(plan_, rows_->graph, made_);
  mark_views();
  // The output goes straight to the caller's buffer where the tail makes all of it.
  SlotId root = plan_.output;
  while (slot(root).storage == Storage::kAlias) root = slot(root).alias_of;
  if (slot(root).part == Part::kTail && slot(root).bytes(1) == slot(plan_.output).bytes(1)) {
    slot(root).storage = Storage::kLogits;
  }
}

void RowProgram::mark_views() {
  for (auto* nodes : {&plan_.body, &plan_.tail}) {
    for (PlannedNode& node : *nodes) {
      node.view = std::all_of(node.outputs.begin(), node.outputs.end(), [&](SlotId id) {
        return id == kNoSlot || slot(id).storage == Storage::kAlias;
      });
    }
  }
}

// Gives the arena's slots their addresses.
void RowProgram::bind_slots() {
  arena_ = AlignedBuffer();  // first give back, then take
  bind_arena(AlignedBuffer(static_cast<std::size_t>(plan_.arena_bytes)));
}

void RowProgram::bind_arena(AlignedBuffer arena) {
  arena_ = std::move(arena);
  for (std::size_t i = 0; i < plan_.slots.size(); ++i) {
    const Slot& own = plan_.slots[i];
    if (own.storage == Storage::kArena) tensors_[i].data = arena_.as<std::byte>() + own.offset;
    tensors_[i].row_stride = own.row_stride;
  }
  body_rows_ = -1;
  tail_rows_ = -1;
}

void RowProgram::set_rows(Part part, std::int64_t rows) {
  std::int64_t& known = part == Part::kBody ? body_rows_ : tail_rows_;
  if (known == rows) return;
  known = rows;
  for (std::size_t i = 0; i < plan_.slots.size(); ++i) {
    if (plan_.slots[i].part == part) tensors_[i].dims = plan_.slots[i].dims(rows);
  }
}

void RowProgram::fill_ids(SlotId id, std::span<const std::int64_t> ids) {
  if (id == kNoSlot) return;
  Tensor& target = tensor(id);
  if (ids.empty()) {
    std::memset(target.data, 0, static_cast<std::size_t>(slot(id).bytes(body_rows_)));
    return;
  }
  if (target.dtype == DType::kI32) {
    std::transform(ids.begin(), ids.end(), target.as<std::int32_t>(),
                   [](std::int64_t value) { return static_cast<std::int32_t>(value); });
  } else {
    std::copy(ids.begin(), ids.end(), target.as<std::int64_t>());
  }
}

void RowProgram::run_node(const PlannedNode& planned) {
  if (planned.view) {
    for (const SlotId id : planned.outputs) {
      if (id == kNoSlot) continue;
      const Slot& view = slot(id);
      tensor(id).data = tensor(view.alias_of).as<std::byte>() + view.alias_offset;
    }
    return;
  }
  context_->enter(planned);
  const auto index = static_cast<std::size_t>(planned.node);
  try {
    run_kernel(*made_[index], *context_, profiler_, index);
  } catch (const Error& error) {
    throw Error(error.code(), rows_->graph.nodes[index].label() + ": " + error.what());
  }
}

std::vector<OpProfile> RowProgram::profiled_ops() const {
  std::vector<OpProfile> ops;
  ops.reserve(made_.size());
  for (std::size_t n = 0; n < made_.size(); ++n) {
    ops.push_back(made_[n] ? describe_op(rows_->graph.nodes[n], *made_[n]) : OpProfile{});
  }
  return ops;
}

void RowProgram::run_nodes(const std::vector<PlannedNode>& nodes, const CancelCheck* cancelled) {
  for (const PlannedNode& node : nodes) {
    if (cancelled != nullptr && !node.view && (*cancelled)()) {
      throw Error(ErrorCode::kCancelled, "cancelled between operators");
    }
    run_node(node);
  }
}

void RowProgram::gather(std::span<const std::int64_t> wanted, std::int64_t rows) {
  const bool all = static_cast<std::int64_t>(wanted.size()) == rows;
  for (const Gather& gather : plan_.gathers) {
    const Tensor& from = tensor(gather.from);
    Tensor& to = tensor(gather.to);
    if (all) {
      to.data = from.data;
      continue;
    }
    // kLogits slots were pointed at the caller's buffer for this run.
    if (slot(gather.to).storage == Storage::kArena) {
      to.data = arena_.as<std::byte>() + slot(gather.to).offset;
    }
    const auto bytes = static_cast<std::size_t>(gather.row_bytes);
    auto* target = to.as<std::byte>();
    for (const std::int64_t row : wanted) {
      std::memcpy(target, from.as<const std::byte>() + row * gather.row_bytes, bytes);
      target += bytes;
    }
  }
}

void RowProgram::run(const RowInput& input) {
  const auto rows = static_cast<std::int64_t>(input.tokens.size());
  const auto wanted = static_cast<std::int64_t>(input.wanted.size());
  context_->set_batch(&input.batch);
  set_rows(Part::kBody, rows);
  fill_ids(plan_.tokens, input.tokens);
  fill_ids(plan_.positions, input.positions);
  fill_ids(plan_.types, input.types);
  run_nodes(plan_.body, input.cancelled);
  if (wanted == 0) return;
  set_rows(Part::kTail, wanted);
  for (std::size_t i = 0; i < plan_.slots.size(); ++i) {
    if (plan_.slots[i].storage == Storage::kLogits) tensors_[i].data = input.output;
  }
  gather(input.wanted, rows);
  run_nodes(plan_.tail, input.cancelled);
  const Tensor& output = tensor(plan_.output);
  if (output.data != input.output) {
    std::memcpy(input.output, output.data,
                static_cast<std::size_t>(wanted * plan_.output_features) * sizeof(float));
  }
}

}  // namespace kvik::runtime
