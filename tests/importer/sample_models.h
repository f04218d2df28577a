// Small valid models, written field by field, for tests that cut and mutate them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvik::test {

// Appends protobuf fields to a message.
class Message {
 public:
  Message& varint(std::uint32_t field, std::uint64_t value) {
    put_varint(std::uint64_t{field} << 3);
    put_varint(value);
    return *this;
  }
  Message& bytes(std::uint32_t field, std::string_view content) {
    put_varint(std::uint64_t{field} << 3 | 2);
    put_varint(content.size());
    text_ += content;
    return *this;
  }
  Message& message(std::uint32_t field, const Message& inner) { return bytes(field, inner.text_); }
  const std::string& text() const { return text_; }

 private:
  void put_varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) text_ += static_cast<char>(value | 0x80);
    text_ += static_cast<char>(value);
  }
  std::string text_;
};

inline Message node(std::string_view op, std::vector<std::string_view> inputs,
                    std::vector<std::string_view> outputs, std::string_view domain = "") {
  Message out;
  for (std::string_view input : inputs) out.bytes(1, input);
  for (std::string_view output : outputs) out.bytes(2, output);
  out.bytes(3, std::string(op) + "_of_" + std::string(outputs[0])).bytes(4, op);
  if (!domain.empty()) out.bytes(7, domain);
  return out;
}

inline Message int_attribute(std::string_view name, std::int64_t value) {
  return Message().bytes(1, name).varint(3, static_cast<std::uint64_t>(value)).varint(20, 2);
}

inline Message graph_attribute(std::string_view name, const Message& graph) {
  return Message().bytes(1, name).message(6, graph).varint(20, 5);
}

inline Message value_info(std::string_view name, std::uint64_t elem_type,
                          std::vector<std::string_view> dims) {
  Message shape;
  for (std::string_view dim : dims) shape.message(1, Message().bytes(2, dim));
  const Message type = Message().message(1, Message().varint(1, elem_type).message(2, shape));
  return Message().bytes(1, name).message(2, type);
}

inline Message model(const Message& graph, std::uint64_t opset) {
  return Message()
      .varint(1, 8)
      .bytes(2, "kvik tests")
      .message(7, graph)
      .message(8, Message().bytes(1, "").varint(2, opset))
      .message(8, Message().bytes(1, "local").varint(2, 1))
      .message(14, Message().bytes(1, "key").bytes(2, "value"));
}

// Initializers in raw_data, in packed varints and in packed floats.
inline std::string weights_model() {
  const std::string raw(24, '\x01');
  const Message w = Message().varint(1, 2).varint(1, 3).varint(2, 1).bytes(8, "w").bytes(9, raw);
  const Message shape = Message().varint(1, 2).varint(2, 7).bytes(7, "\x03\x02").bytes(8, "shape");
  const Message bias =
      Message().varint(1, 3).varint(2, 1).bytes(4, std::string(12, '\x02')).bytes(8, "bias");
  const Message reduce =
      node("ReduceMean", {"sum"}, {"mean"}).message(5, int_attribute("keepdims", 1));
  const Message graph = Message()
                            .message(1, node("MatMul", {"x", "w"}, {"product"}))
                            .message(1, node("Add", {"product", "bias"}, {"sum"}))
                            .message(1, reduce)
                            .message(1, node("Identity", {"mean"}, {"same"}))
                            .message(1, node("Reshape", {"same", "shape"}, {"y"}))
                            .bytes(2, "weights")
                            .message(5, w)
                            .message(5, shape)
                            .message(5, bias)
                            .message(11, value_info("x", 1, {"rows", "two"}))
                            .message(12, value_info("y", 1, {}));
  return model(graph, 17).text();
}

// A branch that captures, older forms, and a function that is called twice.
inline std::string control_model() {
  const auto branch = [](std::string_view op, std::string_view output) {
    return Message()
        .message(1, node(op, {"x", "x"}, {output}))
        .bytes(2, op)
        .message(12, value_info(output, 1, {}));
  };
  const Message condition = node("If", {"flag"}, {"chosen"})
                                .message(5, graph_attribute("then_branch", branch("Add", "a")))
                                .message(5, graph_attribute("else_branch", branch("Mul", "b")));
  const Message axes = Message().bytes(1, "axes").varint(8, 0).varint(8, 1).varint(20, 7);
  const Message softmax = node("Softmax", {"twice"}, {"soft"}).message(5, int_attribute("axis", 0));
  const Message function = Message()
                               .bytes(1, "Twice")
                               .bytes(4, "in")
                               .bytes(5, "out")
                               .message(7, node("Add", {"in", "in"}, {"t"}))
                               .message(7, node("Relu", {"t"}, {"out"}))
                               .message(9, Message().bytes(1, "").varint(2, 12))
                               .bytes(10, "local");
  const Message graph = Message()
                            .message(1, condition)
                            .message(1, node("Twice", {"chosen"}, {"once"}, "local"))
                            .message(1, node("Twice", {"once"}, {"twice"}, "local"))
                            .message(1, softmax)
                            .message(1, node("Unsqueeze", {"soft"}, {"y"}).message(5, axes))
                            .bytes(2, "control")
                            .message(11, value_info("x", 1, {"rows", "columns"}))
                            .message(11, value_info("flag", 9, {}))
                            .message(12, value_info("y", 1, {}));
  return model(graph, 12).message(25, function).text();
}

inline std::vector<std::string> sample_models() {
  return {weights_model(), control_model()};
}

}  // namespace kvik::test
