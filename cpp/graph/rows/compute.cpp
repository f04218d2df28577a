// Row rules of operators that compute along feature axes: products, normalisations, reductions.
#include <algorithm>

#include "graph/infer/rules.h"
#include "graph/rows/prover.h"

namespace kvik::graph {

namespace {

const Value& first_result(const Prover& p, const Node& node) {
  return p.source().value(node.outputs[0]);
}

std::int64_t feature_size(const Axis& axis) {
  return *axis_size(axis).constant();
}

// MatMul with at least one operand per token: row-wise when the axis that is summed over holds
// features and the token axis stands in one place of the result.
void matmul(Prover& p, const Node& node) {
  RowValue a = p.dense(p.get(node.input(0)));
  RowValue b = p.dense(p.get(node.input(1)));
  if (a.layout.size() < 2 || b.layout.size() < 2) stop(node.label() + " multiplies a vector");
  const Axis& summed_a = a.layout.back();
  const Axis& summed_b = b.layout[b.layout.size() - 2];
  if (!features_only(summed_a) || !features_only(summed_b)) {
    stop(node.label() + " sums over the tokens");
  }
  // Batch axes correspond element by element; rows of a and columns of b are free.
  Layout batch_a(a.layout.begin(), a.layout.end() - 2);
  Layout batch_b(b.layout.begin(), b.layout.end() - 2);
  RowValue out;
  out.layout = broadcast_layouts({&batch_a, &batch_b}, node.label());
  out.layout.push_back(a.layout[a.layout.size() - 2]);
  out.layout.push_back(b.layout.back());
  broadcast_layouts({&out.layout}, node.label());  // one token axis, one batch axis
  out.rows = a.rows || b.rows;
  if (a.rows && b.rows) {
    // [rows, ...] on both sides: ranks must agree for the leading axis to correspond.
    const std::size_t rank = out.layout.size();
    for (RowValue* value : {&a, &b}) {
      std::vector<std::int64_t> dims(rank - value->layout.size(), 1);
      for (const std::int64_t dim : stored_dims(value->layout)) dims.push_back(dim);
      value->id = p.reshaped(value->id, dims);
    }
  } else if (a.rows != b.rows) {
    RowValue& moving = a.rows ? a : b;
    const std::size_t rank = std::max(a.layout.size(), b.layout.size());
    std::vector<std::int64_t> dims(rank - moving.layout.size(), 1);
    for (const std::int64_t dim : stored_dims(moving.layout)) dims.push_back(dim);
    moving.id = p.reshaped(moving.id, dims);
  }
  out.id = p.emit("MatMul", "", {a.id, b.id}, {}, first_result(p, node).dtype,
                  stored_dims(out.layout), out.rows, first_result(p, node).name);
  p.set(node.outputs[0], std::move(out));
}

// kvik.Linear(x, w, bias?, residual?, scale?, zero?): features of x's last axis times constant
// weights.
void linear(Prover& p, const Node& node) {
  const RowValue x = p.dense(p.get(node.input(0)));
  const RowValue w = p.get(node.input(1));
  if (w.rows) stop(node.label() + " has weights per token");
  if (x.layout.empty() || !features_only(x.layout.back())) {
    stop(node.label() + " sums over the tokens");
  }
  RowValue out = x;
  const Expr& features = p.shape(node.outputs[0]).back();
  out.layout.back() = features.is(1) ? Axis{} : Axis{{kFeatureRole, features, false}};
  std::vector<ValueId> inputs{x.id, w.id};
  for (std::size_t i = 2; i < node.inputs.size(); ++i) {
    if (node.inputs[i] == kNoValue) {
      inputs.push_back(kNoValue);
      continue;
    }
    const RowValue extra = p.dense(p.get(node.inputs[i]));
    if (i != 3 && extra.rows) stop(node.label() + " has a bias or scales per token");
    if (i == 3 && (!extra.rows || stored_dims(extra.layout) != stored_dims(out.layout))) {
      stop(node.label() + " adds a residual whose axes do not correspond");
    }
    if (i == 3) broadcast_layouts({&extra.layout, &out.layout}, node.label());
    inputs.push_back(extra.id);
  }
  out.id = p.emit("Linear", "kvik", std::move(inputs), node.attributes, first_result(p, node).dtype,
                  stored_dims(out.layout), x.rows, first_result(p, node).name);
  p.set(node.outputs[0], std::move(out));
}

// A weight that is stored as integers, the same for every row.
void dequantize(Prover& p, const Node& node) {
  std::vector<ValueId> inputs;
  for (const ValueId id : node.inputs) {
    const RowValue value = p.get(id);
    if (value.rows && id != kNoValue) stop(node.label() + " dequantises tokens");
    inputs.push_back(value.id);
  }
  RowValue out = p.get(node.input(0));
  const Value& result = first_result(p, node);
  if (result.dtype == DType::kUndefined) stop(node.label() + " makes an unknown type");
  out.id = p.emit(node.op, "", std::move(inputs), node.attributes, result.dtype,
                  stored_dims(out.layout), false, result.name);
  p.set(node.outputs[0], std::move(out));
}

// Gemm on [tokens, K]: a plain product per row.
void gemm(Prover& p, const Node& node) {
  const RowValue a = p.dense(p.get(node.input(0)));
  const RowValue b = p.get(node.input(1));
  if (!a.rows || b.rows || node.int_attr("transA", 0) != 0) {
    stop(node.label() + " does not multiply token rows by weights");
  }
  if (!features_only(a.layout[1])) stop(node.label() + " sums over the tokens");
  std::vector<ValueId> inputs;
  const std::int64_t depth = feature_size(a.layout[1]);
  const std::int64_t width = *p.shape(node.outputs[0])[1].constant();
  const DType dtype = first_result(p, node).dtype;
  inputs.push_back(
      p.emit("Reshape", "", {a.id, p.constant_ints({-1, depth})}, {}, dtype, {depth}, true, ""));
  inputs.push_back(b.id);
  if (node.input(2) != kNoValue) {
    const RowValue c = p.get(node.input(2));
    if (c.rows) stop(node.label() + " adds a matrix per token");
    inputs.push_back(c.id);
  }
  RowValue out = a;
  out.layout[1] = width == 1 ? Axis{} : Axis{{kFeatureRole, Expr(width), false}};
  const ValueId product = p.emit("Gemm", "", std::move(inputs), node.attributes, dtype, {width},
                                 true, first_result(p, node).name);
  out.id = p.reshaped(product, stored_dims(out.layout));
  p.set(node.outputs[0], std::move(out));
}

// Normalisation over the axes from `axis` to the last.
void normalization(Prover& p, const Node& node) {
  RowValue x = p.dense(p.get(node.input(0)));
  const int axis = p.axis_attr(node, "axis", -1, x.layout.size());
  for (std::size_t i = static_cast<std::size_t>(axis); i < x.layout.size(); ++i) {
    if (!features_only(x.layout[i])) stop(node.label() + " normalises across tokens");
  }
  std::vector<ValueId> inputs{x.id};
  for (std::size_t i = 1; i < node.inputs.size(); ++i) {
    const RowValue weight = p.get(node.inputs[i]);
    if (node.inputs[i] != kNoValue && weight.rows) stop(node.label() + " has a scale per token");
    inputs.push_back(weight.id);
  }
  for (std::size_t i = 1; i < node.outputs.size(); ++i) {
    if (node.outputs[i] != kNoValue) stop(node.label() + " has more than one result");
  }
  auto attributes = node.attributes;
  attributes["axis"] = std::int64_t{axis + (x.rows ? 1 : 0)};
  x.id = p.emit(node.op, node.domain, std::move(inputs), attributes, first_result(p, node).dtype,
                stored_dims(x.layout), x.rows, first_result(p, node).name);
  p.set(node.outputs[0], std::move(x));
}

// Softmax and its kin along one feature axis.
void along_axis(Prover& p, const Node& node) {
  RowValue x = p.dense(p.get(node.input(0)));
  const int axis = p.axis_attr(node, "axis", -1, x.layout.size());
  if (!features_only(x.layout[static_cast<std::size_t>(axis)])) {
    stop(node.label() + " works across tokens");
  }
  auto attributes = node.attributes;
  attributes["axis"] = std::int64_t{axis + (x.rows ? 1 : 0)};
  x.id = p.emit(node.op, "", {x.id}, attributes, first_result(p, node).dtype, stored_dims(x.layout),
                x.rows, first_result(p, node).name);
  p.set(node.outputs[0], std::move(x));
}

void reduce(Prover& p, const Node& node) {
  const RowValue x = p.dense(p.get(node.input(0)));
  const std::size_t rank = x.layout.size();
  std::vector<std::int64_t> axes;
  if (node.input(1) != kNoValue) {
    const auto given = p.source().constant_ints(node.input(1));
    if (!given) stop(node.label() + " has axes that are not constant");
    axes = *given;
  }
  if (axes.empty()) {
    if (node.int_attr("noop_with_empty_axes", 0) != 0) return p.set(node.outputs[0], x);
    stop(node.label() + " reduces across tokens");
  }
  std::vector<bool> reduced(rank, false);
  for (std::int64_t& a : axes) {
    const auto axis = normalize_axis(a, rank);
    if (!axis) stop(node.label() + " has an axis out of range");
    if (!features_only(x.layout[static_cast<std::size_t>(*axis)])) {
      stop(node.label() + " reduces across tokens");
    }
    reduced[static_cast<std::size_t>(*axis)] = true;
    a = *axis + (x.rows ? 1 : 0);
  }
  const bool keep = node.int_attr("keepdims", 1) != 0;
  RowValue out;
  out.rows = x.rows;
  for (std::size_t i = 0; i < rank; ++i) {
    if (!reduced[i]) {
      out.layout.push_back(x.layout[i]);
    } else if (keep) {
      out.layout.emplace_back();
    }
  }
  out.id = p.emit(node.op, "", {x.id, p.constant_ints(axes)}, node.attributes,
                  first_result(p, node).dtype, stored_dims(out.layout), x.rows,
                  first_result(p, node).name);
  p.set(node.outputs[0], std::move(out));
}

}  // namespace

std::vector<RowEntry> rowwise_compute_rules() {
  std::vector<RowEntry> rules = {{"", "MatMul", matmul},
                                 {"kvik", "Linear", linear},
                                 {"", "DequantizeLinear", dequantize},
                                 {"", "Gemm", gemm},
                                 {"", "LayerNormalization", normalization},
                                 {"", "RMSNormalization", normalization},
                                 {"", "Softmax", along_axis},
                                 {"", "LogSoftmax", along_axis},
                                 {"", "LpNormalization", along_axis}};
  for (const char* op :
       {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
        "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"}) {
    rules.push_back({"", op, reduce});
  }
  return rules;
}

}  // namespace kvik::graph
