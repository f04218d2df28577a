#include "runtime/join_products.h"

#include <algorithm>
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
    std::vector<bool> gone(nodes->size(), false);
    for (std::size_t i = 0; i < nodes->size(); ++i) {
      std::vector<std::size_t> parts;
      for (std::size_t j = i; j < nodes->size() && parts.size() < ops::kMostJoinedLinears; ++j) {
        const PlannedNode& node = (*nodes)[j];
        if (gone[j] || !ops::is_linear(*kernels[static_cast<std::size_t>(node.node)])) {
          if (j == i) break;
          continue;
        }
        if (depends_on_x_alone(plan, node) && node.inputs[0] == (*nodes)[i].inputs[0]) {
          parts.push_back(j);
        } else if (j == i) {
          break;
        }
      }
      if (parts.size() < 2) continue;
      join(*nodes, parts, kernels);
      for (const std::size_t j : std::span(parts).subspan(1)) gone[j] = true;
    }
    std::size_t kept = 0;
    for (std::size_t i = 0; i < nodes->size(); ++i) {
      if (!gone[i]) std::swap((*nodes)[kept++], (*nodes)[i]);
    }
    nodes->resize(kept);
  }
}

}  // namespace kvik::runtime
