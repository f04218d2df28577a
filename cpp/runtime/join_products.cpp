#include "runtime/join_products.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "ops/linear.h"

namespace kvik::runtime {

namespace {

SlotId input(const PlannedNode& node, std::size_t i) {
  return i < node.inputs.size() ? node.inputs[i] : kNoSlot;
}

// Whether the node can run wherever its x is there: it has no residual, and its bias is a constant.
bool depends_on_x_alone(const RowPlan& plan, const PlannedNode& node) {
  const SlotId bias = input(node, 2);
  const bool constant =
      bias == kNoSlot || plan.slots[static_cast<std::size_t>(bias)].part == Part::kConstant;
  return constant && input(node, 3) == kNoSlot && input(node, 0) != kNoSlot;
}

void join(std::vector<PlannedNode>& nodes, std::span<const std::size_t> parts,
          std::span<std::unique_ptr<ops::OpKernel>> kernels) {
  PlannedNode& first = nodes[parts.front()];
  PlannedNode joined{.node = first.node, .inputs = {first.inputs[0]}, .outputs = {}};
  std::vector<std::unique_ptr<ops::OpKernel>> linears;
  for (const std::size_t i : parts) {
    joined.inputs.push_back(input(nodes[i], 2));
    joined.outputs.push_back(nodes[i].outputs[0]);
    linears.push_back(std::move(kernels[static_cast<std::size_t>(nodes[i].node)]));
  }
  kernels[static_cast<std::size_t>(first.node)] = ops::join_linears(std::move(linears));
  first = std::move(joined);
}

}  // namespace

void join_products(RowPlan& plan, std::span<std::unique_ptr<ops::OpKernel>> kernels) {
  for (auto* nodes : {&plan.body, &plan.tail}) {
    // Products that others may join, by their x and precision.
    std::map<std::pair<SlotId, std::string>, std::vector<std::size_t>> open;
    std::vector<std::vector<std::size_t>> groups;
    for (std::size_t i = 0; i < nodes->size(); ++i) {
      const PlannedNode& node = (*nodes)[i];
      const ops::OpKernel& kernel = *kernels[static_cast<std::size_t>(node.node)];
      if (!ops::is_linear(kernel) || !depends_on_x_alone(plan, node)) continue;
      std::vector<std::size_t>& group = open[{node.inputs[0], kernel.describe().precision}];
      group.push_back(i);
      if (group.size() == ops::kMostJoinedLinears) groups.push_back(std::exchange(group, {}));
    }
    for (auto& [key, group] : open) groups.push_back(std::move(group));
    std::vector<bool> gone(nodes->size(), false);
    for (const auto& group : groups) {
      if (group.size() < 2) continue;
      join(*nodes, group, kernels);
      for (const std::size_t i : std::span(group).subspan(1)) gone[i] = true;
    }
    std::size_t kept = 0;
    for (std::size_t i = 0; i < nodes->size(); ++i) {
      if (!gone[i]) std::swap((*nodes)[kept++], (*nodes)[i]);
    }
    nodes->resize(kept);
  }
}

}  // namespace kvik::runtime
