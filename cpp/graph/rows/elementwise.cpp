// Row rules of element-wise operators: row-wise by nature, once their operands' axes correspond.
#include "graph/infer/rules.h"
#include "graph/rows/prover.h"

namespace kvik::graph {

namespace {

void elementwise(Prover& p, const Node& node) {
  std::vector<RowValue> inputs;
  std::vector<const Layout*> layouts;
  bool rows = false;
  for (const ValueId id : node.inputs) {
    inputs.push_back(p.dense(p.get(id)));
    rows = rows || (id != kNoValue && inputs.back().rows);
  }
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (node.inputs[i] != kNoValue) layouts.push_back(&inputs[i].layout);
  }
  RowValue out;
  out.rows = rows;
  out.layout = broadcast_layouts(layouts, node.label());
  const std::size_t rank = out.layout.size();

  std::vector<ValueId> ids;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (node.inputs[i] == kNoValue) {
      ids.push_back(kNoValue);
    } else if (inputs[i].rows) {
      std::vector<std::int64_t> dims(rank - inputs[i].layout.size(), 1);
      for (const std::int64_t dim : stored_dims(inputs[i].layout)) dims.push_back(dim);
      ids.push_back(p.reshaped(inputs[i].id, dims));
    } else {
      ids.push_back(inputs[i].id);
    }
  }
  const Value& result = p.source().value(node.outputs[0]);
  out.id = p.emit(node.op, node.domain, std::move(ids), node.attributes, result.dtype,
                  stored_dims(out.layout), out.rows, result.name);
  p.set(node.outputs[0], std::move(out));
}

// One input decides; broadcast atoms pass through unseen.
void unary(Prover& p, const Node& node) {
  RowValue value = p.get(node.input(0));
  std::vector<ValueId> ids{value.id};
  for (std::size_t i = 1; i < node.inputs.size(); ++i) {  // Clip's bounds, PRelu's slope
    const RowValue extra = p.get(node.inputs[i]);
    if (node.inputs[i] != kNoValue && extra.rows) stop(node.label() + " has a bound per token");
    ids.push_back(extra.id);
  }
  const Value& result = p.source().value(node.outputs[0]);
  value.id = p.emit(node.op, node.domain, std::move(ids), node.attributes, result.dtype,
                    stored_dims(value.layout), value.rows, result.name);
  p.set(node.outputs[0], std::move(value));
}

void pass_through(Prover& p, const Node& node) {
  p.set(node.outputs[0], p.get(node.input(0)));
}

}  // namespace

std::vector<RowEntry> rowwise_elementwise_rules() {
  std::vector<RowEntry> rules = {{"", "Identity", pass_through},
                                 {"", "Dropout", pass_through},
                                 {"kvik", "SiluMul", elementwise}};
  for (const char* op : {"Add",
                         "Sub",
                         "Mul",
                         "Div",
                         "Pow",
                         "Mod",
                         "Min",
                         "Max",
                         "Sum",
                         "And",
                         "Or",
                         "Xor",
                         "Equal",
                         "Less",
                         "LessOrEqual",
                         "Greater",
                         "GreaterOrEqual",
                         "BitwiseAnd",
                         "BitwiseOr",
                         "BitwiseXor",
                         "Where",
                         "PRelu"}) {
    rules.push_back({"", op, elementwise});
  }
  for (const char* op : {"Neg",
                         "Abs",
                         "Exp",
                         "Log",
                         "Sqrt",
                         "Floor",
                         "Ceil",
                         "Not",
                         "IsNaN",
                         "IsInf",
                         "Cast",
                         "Relu",
                         "Sigmoid",
                         "Tanh",
                         "Erf",
                         "Gelu",
                         "Swish",
                         "Cos",
                         "Sin",
                         "Tan",
                         "Reciprocal",
                         "Softplus",
                         "Softsign",
                         "Elu",
                         "Selu",
                         "Celu",
                         "LeakyRelu",
                         "HardSigmoid",
                         "HardSwish",
                         "Mish",
                         "ThresholdedRelu",
                         "Clip",
                         "Round",
                         "Sign",
                         "Acos",
                         "Asin",
                         "Atan",
                         "Cosh",
                         "Sinh",
                         "Acosh",
                         "Asinh",
                         "Atanh",
                         "BitwiseNot"}) {
    rules.push_back({"", op, unary});
  }
  return rules;
}

}  // namespace kvik::graph
