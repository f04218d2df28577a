#include "graph/passes/rewriter.h"

#include <algorithm>
#include <utility>

namespace kvik::graph {

namespace {

std::size_t at(std::int32_t id) {
  return static_cast<std::size_t>(id);
}

}  // namespace

Rewriter::Rewriter(Graph& graph, Contents contents, DimLimits* limits)
    : graph_(graph), contents_(std::move(contents)), limits_(limits), uses_(graph) {
  contents_.resize(graph.values.size());
}

const Node& Rewriter::node(NodeId n) const {
  return n < count() ? graph_.nodes[at(n)] : inserted_[at(n - count())];
}

Node& Rewriter::mutable_node(NodeId n) {
  return n < count() ? graph_.nodes[at(n)] : inserted_[at(n - count())];
}

NodeId Rewriter::producer_id(ValueId v) const {
  return v == kNoValue ? kNoNode : uses_.producer[at(v)];
}

const Node* Rewriter::producer(ValueId v) const {
  const NodeId n = producer_id(v);
  return n == kNoNode ? nullptr : &node(n);
}

const Node* Rewriter::producer(ValueId v, std::string_view op, std::string_view domain) const {
  const Node* found = producer(v);
  return found != nullptr && found->is(op, domain) ? found : nullptr;
}

const std::vector<NodeId>& Rewriter::consumers(ValueId v) const {
  static const std::vector<NodeId> kNone;
  return v == kNoValue ? kNone : uses_.consumers[at(v)];
}

bool Rewriter::is_output(ValueId v) const {
  return v != kNoValue && uses_.is_output[at(v)];
}

bool Rewriter::used_once(ValueId v) const {
  return consumers(v).size() == 1 && !is_output(v);
}

std::optional<Shape> Rewriter::shape(ValueId v) const {
  return v == kNoValue ? std::nullopt : graph_.value(v).shape;
}

std::optional<Expr> Rewriter::content(ValueId v) const {
  return v == kNoValue ? std::nullopt : contents_[at(v)];
}

DType Rewriter::dtype(ValueId v) const {
  return v == kNoValue ? DType::kUndefined : graph_.value(v).dtype;
}

std::optional<std::int64_t> Rewriter::upper_bound(const Expr& dim) const {
  if (dim.constant()) return dim.constant();
  if (limits_ == nullptr || dim.kind() != ExprKind::kSymbol) return std::nullopt;
  const auto it = limits_->find(dim.str());
  return it == limits_->end() ? std::nullopt : std::optional(it->second);
}

void Rewriter::add_use(ValueId v, NodeId n) {
  if (v == kNoValue) return;
  uses_.consumers[at(v)].push_back(n);
  // A node that was dead and is needed again uses its inputs again.
  const NodeId by = uses_.producer[at(v)];
  if (by == kNoNode || dropped_.erase(by) == 0) return;
  for (const ValueId input : node(by).inputs) add_use(input, by);
}

bool Rewriter::alive(NodeId n) const {
  const Node& candidate = node(n);
  return std::any_of(candidate.outputs.begin(), candidate.outputs.end(), [&](ValueId out) {
    return out != kNoValue && (!uses_.consumers[at(out)].empty() || uses_.is_output[at(out)]);
  });
}

// A node that lost the last use of its outputs takes its own uses with it, so that used_once() sees
// what remove_dead() will leave.
void Rewriter::drop_use(ValueId v, NodeId n) {
  std::vector<std::pair<ValueId, NodeId>> pending{{v, n}};
  while (!pending.empty()) {
    const auto [value, user] = pending.back();
    pending.pop_back();
    if (value == kNoValue) continue;
    auto& list = uses_.consumers[at(value)];
    const auto it = std::find(list.begin(), list.end(), user);
    if (it == list.end()) continue;
    list.erase(it);
    const NodeId by = uses_.producer[at(value)];
    if (by == kNoNode || alive(by) || !dropped_.insert(by).second) continue;
    for (const ValueId input : node(by).inputs) pending.emplace_back(input, by);
  }
}

std::string Rewriter::unique_name(std::string_view base) {
  return std::string(base) + "/kvik_" + std::to_string(graph_.values.size()) + "_" +
         std::to_string(serial_++);
}

void Rewriter::infer_node(const Node& target) {
  InferContext context(graph_, contents_, limits_, target);
  if (const InferRule rule = find_infer_rule(target.domain, target.op)) rule(context);
}

void Rewriter::rewrite(NodeId n, std::string domain, std::string op, std::vector<ValueId> inputs,
                       Attributes attributes, std::size_t keep_outputs) {
  Node& target = mutable_node(n);
  const std::vector<ValueId> old = std::exchange(target.inputs, std::move(inputs));
  for (const ValueId input : target.inputs) add_use(input, n);  // before dropping: some are shared
  target.domain = std::move(domain);
  target.op = std::move(op);
  target.attributes = std::move(attributes);
  for (std::size_t i = keep_outputs; i < target.outputs.size(); ++i) {
    if (target.outputs[i] != kNoValue) uses_.producer[at(target.outputs[i])] = kNoNode;
  }
  if (target.outputs.size() > keep_outputs) target.outputs.resize(keep_outputs);
  for (const ValueId input : old) drop_use(input, n);
  infer_node(target);
  ++changes_;
}

ValueId Rewriter::insert(NodeId before, std::string op, std::vector<ValueId> inputs,
                         Attributes attributes, std::string domain, std::string name) {
  const NodeId id = count() + static_cast<NodeId>(inserted_.size());
  const Node& next = node(before);
  const ValueId named_after = next.output(0);
  const std::string base = named_after == kNoValue ? op : graph_.value(named_after).name;
  const ValueId out = graph_.add_value(unique_name(base));
  contents_.resize(graph_.values.size());
  uses_.producer.push_back(id);
  uses_.consumers.emplace_back();
  uses_.is_output.push_back(false);
  Node& added = inserted_.emplace_back();
  added.domain = std::move(domain);
  added.op = std::move(op);
  added.name = name.empty() ? graph_.value(out).name : std::move(name);
  added.inputs = std::move(inputs);
  added.outputs = {out};
  added.attributes = std::move(attributes);
  for (const ValueId input : added.inputs) add_use(input, id);
  const NodeId anchor = before < count() ? before : anchor_[at(before - count())];
  auto& list = before_[anchor];
  list.insert(std::find(list.begin(), list.end(), before), id);
  anchor_.push_back(anchor);
  infer_node(added);
  return out;
}

ValueId Rewriter::add_constant(ConstantTensor tensor, std::string_view hint) {
  const ValueId id = graph_.add_constant(unique_name(hint), std::move(tensor));
  contents_.resize(graph_.values.size());
  contents_[at(id)] = constant_content(graph_.value(id).constant);
  uses_.producer.push_back(kNoNode);
  uses_.consumers.emplace_back();
  uses_.is_output.push_back(false);
  return id;
}

ValueId Rewriter::add_ints(const std::vector<std::int64_t>& values, std::string_view hint) {
  return add_constant(
      ConstantTensor::from_ints(values, Dims{static_cast<std::int64_t>(values.size())}), hint);
}

void Rewriter::make_constant(ValueId v, ConstantTensor tensor) {
  const NodeId by = producer_id(v);
  Node& target = mutable_node(by);
  std::replace(target.outputs.begin(), target.outputs.end(), v, kNoValue);
  uses_.producer[at(v)] = kNoNode;
  const bool dead = std::all_of(target.outputs.begin(), target.outputs.end(),
                                [](ValueId out) { return out == kNoValue; });
  if (dead) {
    for (const ValueId input : std::exchange(target.inputs, {})) drop_use(input, by);
  }
  const auto shared = std::make_shared<const ConstantTensor>(std::move(tensor));
  Value& value = graph_.value(v);
  value.dtype = shared->dtype;
  value.shape.emplace(shared->dims.begin(), shared->dims.end());
  value.constant = shared;
  contents_[at(v)] = constant_content(shared);
  ++changes_;
}

void Rewriter::replace_uses(ValueId from, ValueId to) {
  const std::vector<NodeId> users = uses_.consumers[at(from)];
  for (const NodeId n : users) {
    Node& user = mutable_node(n);
    const auto it = std::find(user.inputs.begin(), user.inputs.end(), from);
    if (it == user.inputs.end()) continue;  // a body captures it, by name
    *it = to;
    add_use(to, n);
    drop_use(from, n);
  }
}

bool Rewriter::bypass(ValueId from, ValueId to) {
  if (!uses_.is_output[at(from)]) {
    const std::size_t uses_before = uses_.consumers[at(from)].size();
    replace_uses(from, to);
    const bool replaced = uses_.consumers[at(from)].size() < uses_before;  // bodies keep theirs
    changes_ += replaced ? 1 : 0;
    return replaced;
  }
  // `to` ceases to exist: its producer makes `from` instead.
  const NodeId maker = producer_id(to);
  const NodeId old = producer_id(from);
  if (maker == kNoNode || old == kNoNode || uses_.is_output[at(to)] ||
      graph_.value(from).constant || node(old).outputs.size() != 1) {
    return false;
  }
  for (const NodeId n : uses_.consumers[at(to)]) {
    const Node& user = node(n);
    if (std::find(user.inputs.begin(), user.inputs.end(), to) == user.inputs.end()) return false;
  }
  Node& bypassed = mutable_node(old);
  bypassed.outputs.clear();  // now dead
  std::erase(uses_.consumers[at(to)], old);
  for (const ValueId input : std::exchange(bypassed.inputs, {})) drop_use(input, old);
  Node& producing = mutable_node(maker);
  std::replace(producing.outputs.begin(), producing.outputs.end(), to, from);
  uses_.producer[at(from)] = maker;
  uses_.producer[at(to)] = kNoNode;
  replace_uses(to, from);
  ++changes_;
  return true;
}

void Rewriter::finish() {
  std::vector<Node> ordered;
  ordered.reserve(graph_.nodes.size() + inserted_.size());
  const NodeId original = count();
  for (NodeId n = 0; n < original; ++n) {
    if (const auto it = before_.find(n); it != before_.end()) {
      for (const NodeId id : it->second) ordered.push_back(std::move(inserted_[at(id - original)]));
    }
    ordered.push_back(std::move(graph_.nodes[at(n)]));
  }
  std::erase_if(ordered, [](const Node& node) {
    return std::all_of(node.outputs.begin(), node.outputs.end(),
                       [](ValueId out) { return out == kNoValue; });
  });
  graph_.nodes = std::move(ordered);
  // A use that moved to another value may stand before the node that now produces it.
  sort_nodes(graph_);
}

}  // namespace kvik::graph
