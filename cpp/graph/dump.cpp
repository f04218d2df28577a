// dump(): the listing of a graph that a human reads.
//
//   graph 'main': input_ids int64 [batch, sequence]
//     x      = Gather(wte float32 [97, 32], input_ids) {axis=0}    float32 [batch, sequence, 32]
//     logits = MatMul(x, head float32 [32, 97])                    float32 [batch, sequence, 97]
//     return logits
#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>

#include "base/text.h"
#include "graph/graph.h"

namespace kvik::graph {

namespace {

constexpr std::int64_t kShownElements = 4;  // of a constant or a list attribute
constexpr std::size_t kAlignedWidth = 40;   // names longer than this are not aligned

std::string number(double value) {
  char buffer[32];
  // The shortest text that reads back as the same float32.
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, static_cast<float>(value)).ptr;
  return std::string(buffer, end);
}

template <typename Item, typename Show>
std::string list(const Item& items, Show show) {
  std::string out = "[";
  std::int64_t shown = 0;
  for (const auto& item : items) {
    if (shown > 0) out += ", ";
    if (shown++ == kShownElements) {
      out += "...";
      break;
    }
    out += show(item);
  }
  return out + "]";
}

std::string type_of(const Value& value) {
  std::string out = value.dtype == DType::kUndefined ? "?" : dtype_name(value.dtype);
  if (!value.shape) return out + " [...]";
  return out + " " + list(*value.shape, [](const Expr& dim) { return dim.str(); });
}

std::string elements_of(const ConstantTensor& tensor) {
  std::string out;
  const std::int64_t count = tensor.dims.elements();
  for (std::int64_t i = 0; i < count; ++i) {
    if (i > 0) out += ", ";
    if (tensor.dtype == DType::kBool) {
      out += tensor.int_at(i) ? "true" : "false";
    } else if (dtype_is_float(tensor.dtype) || tensor.dtype == DType::kU64) {
      out += number(tensor.float_at(i));
    } else {
      out += std::to_string(tensor.int_at(i));
    }
  }
  return tensor.dims.rank == 0 ? out : "[" + out + "]";
}

bool is_small(const ConstantTensor& tensor) {
  return tensor.dims.rank <= 1 && tensor.dims.elements() <= kShownElements &&
         dtype_bits(tensor.dtype) != 0;
}

std::string constant_of(const ConstantTensor& tensor) {
  if (is_small(tensor)) return elements_of(tensor);
  return std::string(dtype_name(tensor.dtype)) + " " + tensor.dims.str();
}

struct ShowAttribute {
  std::string operator()(std::int64_t value) const { return std::to_string(value); }
  std::string operator()(float value) const { return number(value); }
  std::string operator()(const std::string& value) const { return quote(value, 40); }
  std::string operator()(const std::vector<std::int64_t>& values) const {
    return list(values, *this);
  }
  std::string operator()(const std::vector<float>& values) const { return list(values, *this); }
  std::string operator()(const std::vector<std::string>& values) const {
    return list(values, *this);
  }
  std::string operator()(const ConstantTensor& tensor) const { return constant_of(tensor); }
  std::string operator()(const std::shared_ptr<Graph>& body) const { return bare(body->name); }
  std::string operator()(const Expr& expr) const { return expr.str(); }
};

class Dumper {
 public:
  void graph(const Graph& g, const std::string& indent, const std::string& title) {
    out_ += indent + title + " " + quote(g.name) + ":";
    const char* separator = " ";
    for (ValueId input : g.inputs) {
      out_ += separator + bare(g.value(input).name) + " " + type_of(g.value(input));
      separator = ", ";
    }
    separator = g.inputs.empty() ? " uses " : "; uses ";
    for (ValueId capture : g.captures) {
      out_ += separator + bare(g.value(capture).name);
      separator = ", ";
    }
    out_ += "\n";
    const std::size_t width = left_width(g);
    for (const Node& node : g.nodes) line(g, node, indent + "  ", width);
    out_ += indent + "  return ";
    for (std::size_t i = 0; i < g.outputs.size(); ++i) {
      out_ += (i ? ", " : "") + operand(g, g.outputs[i]);
    }
    out_ += "\n";
  }

  std::string take() { return std::move(out_); }

 private:
  static std::string left(const Graph& g, const Node& node) {
    std::string out;
    for (ValueId output : node.outputs) {
      if (!out.empty()) out += ", ";
      out += output == kNoValue ? "_" : bare(g.value(output).name);
    }
    return out;
  }

  static std::size_t left_width(const Graph& g) {
    std::size_t width = 0;
    for (const Node& node : g.nodes) {
      const std::size_t size = left(g, node).size();
      if (size <= kAlignedWidth) width = std::max(width, size);
    }
    return width;
  }

  // A value as an argument: small constants by value, others by name with their type.
  static std::string operand(const Graph& g, ValueId id) {
    if (id == kNoValue) return "_";
    const Value& value = g.value(id);
    if (!value.constant) return bare(value.name);
    const std::string text = constant_of(*value.constant);
    return is_small(*value.constant) ? text : bare(value.name) + " " + text;
  }

  void line(const Graph& g, const Node& node, const std::string& indent, std::size_t width) {
    std::string text = indent + left(g, node);
    text.resize(std::max(text.size(), indent.size() + width), ' ');
    text += " = " + (node.domain.empty() ? "" : bare(node.domain) + ".") + bare(node.op) + "(";
    for (std::size_t i = 0; i < node.inputs.size(); ++i) {
      text += (i ? ", " : "") + operand(g, node.inputs[i]);
    }
    text += ")";
    if (!node.attributes.empty()) {
      const char* separator = " {";
      for (const auto& [key, attribute] : node.attributes) {
        text += separator + bare(key) + "=" + std::visit(ShowAttribute{}, attribute);
        separator = ", ";
      }
      text += "}";
    }
    std::string types;
    for (ValueId output : node.outputs) {
      if (output == kNoValue || g.value(output).dtype == DType::kUndefined) continue;
      types += (types.empty() ? "  " : ", ") + type_of(g.value(output));
    }
    out_ += text + types + "\n";
    for (const auto& [key, attribute] : node.attributes) {
      if (const auto* body = std::get_if<std::shared_ptr<Graph>>(&attribute)) {
        graph(**body, indent + "  ", bare(key));
      }
    }
  }

  std::string out_;
};

}  // namespace

std::string dump(const Graph& graph) {
  Dumper dumper;
  dumper.graph(graph, "", "graph");
  return dumper.take();
}

}  // namespace kvik::graph
