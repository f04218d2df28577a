// Writes a small decoder as ONNX bytes: embedding, learned positions, causal attention, projection.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "cpp/check.h"

namespace kvik::test {

// The protobuf wire format, as far as ONNX needs it here.
class Message {
 public:
  Message& varint(int field, std::uint64_t value) {
    raw_varint(static_cast<std::uint64_t>(field) << 3);
    return raw_varint(value);
  }
  Message& bytes(int field, std::string_view value) {
    raw_varint((static_cast<std::uint64_t>(field) << 3) | 2);
    raw_varint(value.size());
    text_.append(value);
    return *this;
  }
  Message& message(int field, const Message& value) { return bytes(field, value.text_); }
  const std::string& text() const { return text_; }

 private:
  Message& raw_varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) text_.push_back(static_cast<char>(value | 0x80));
    text_.push_back(static_cast<char>(value));
    return *this;
  }
  std::string text_;
};

struct TinyModel {
  int vocab = 40;
  int width = 16;
  int heads = 2;
  int context = 70;
  bool causal = true;
  std::int64_t trips = 0;      // of a loop before the projection; 0: none
  std::int64_t declared = 40;  // what the file says of the logits' last dimension; 0: nothing
  bool half = false;           // logits in float16
  std::map<std::string, std::string> metadata;
};

namespace onnx_bytes {

inline Message floats(const std::string& name, const std::vector<std::int64_t>& dims,
                      const std::vector<float>& values) {
  Message tensor;
  for (const std::int64_t dim : dims) tensor.varint(1, static_cast<std::uint64_t>(dim));
  const std::string raw(reinterpret_cast<const char*>(values.data()),
                        values.size() * sizeof(float));
  return tensor.varint(2, 1).bytes(8, name).bytes(9, raw);
}

inline Message weight(Random& random, const std::string& name,
                      const std::vector<std::int64_t>& dims) {
  std::int64_t count = 1;
  for (const std::int64_t dim : dims) count *= dim;
  const float range = 3.0F / std::sqrt(static_cast<float>(dims[0]));
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(random.uniform(-range, range));
  return floats(name, dims, values);
}

inline Message ints(const std::string& name, std::vector<std::int64_t> values, bool scalar) {
  Message tensor;
  if (!scalar) tensor.varint(1, values.size());
  std::string raw(reinterpret_cast<const char*>(values.data()), values.size() * 8);
  return tensor.varint(2, 7).bytes(8, name).bytes(9, raw);
}

inline Message attribute(const std::string& name, std::int64_t value) {
  return Message().bytes(1, name).varint(3, static_cast<std::uint64_t>(value)).varint(20, 2);
}

inline Message node(const std::string& op, const std::vector<std::string>& inputs,
                    const std::string& output, const std::vector<Message>& attributes = {}) {
  Message out;
  for (const std::string& input : inputs) out.bytes(1, input);
  out.bytes(2, output).bytes(3, "/" + output).bytes(4, op);
  for (const Message& a : attributes) out.message(5, a);
  return out;
}

inline Message value(const std::string& name, int dtype, std::int64_t last_dim) {
  Message shape;
  for (const char* symbol : {"batch", "sequence"}) shape.message(1, Message().bytes(2, symbol));
  if (last_dim > 0) {
    shape.message(1, Message().varint(1, static_cast<std::uint64_t>(last_dim)));
  }
  const Message tensor = Message().varint(1, static_cast<std::uint64_t>(dtype)).message(2, shape);
  return Message().bytes(1, name).message(2, Message().message(1, tensor));
}

// output = -input, `trips` times over.
inline Message loop(const std::string& input, const std::string& output) {
  const auto plain = [](const std::string& name, std::uint64_t dtype) {
    const Message type = Message().message(1, Message().varint(1, dtype));
    return Message().bytes(1, name).message(2, type);
  };
  Message body;
  body.message(1, node("Identity", {"go"}, "goes")).message(1, node("Neg", {"in"}, "out"));
  body.bytes(2, "body");
  body.message(11, plain("i", 7)).message(11, plain("go", 9)).message(11, plain("in", 1));
  body.message(12, plain("goes", 9)).message(12, plain("out", 1));
  return node("Loop", {"trips", "", input}, output,
              {Message().bytes(1, "body").message(6, body).varint(20, 5)});
}

}  // namespace onnx_bytes

inline std::vector<std::byte> tiny_onnx(const TinyModel& m) {
  using namespace onnx_bytes;
  Random random(11);
  Message graph;
  const std::vector<Message> heads{attribute("q_num_heads", m.heads),
                                   attribute("kv_num_heads", m.heads),
                                   attribute("is_causal", m.causal ? 1 : 0)};
  graph.message(1, node("Shape", {"ids"}, "length", {attribute("start", 1), attribute("end", 2)}));
  graph.message(1, node("Squeeze", {"length", "axis0"}, "scalar"));
  graph.message(1, node("Range", {"zero", "scalar", "one"}, "places"));
  graph.message(1, node("Gather", {"table", "places"}, "positions"));
  graph.message(1, node("Gather", {"embedding", "ids"}, "words"));
  graph.message(1, node("Add", {"words", "positions"}, "x"));
  for (const char* part : {"q", "k", "v"}) {
    graph.message(1, node("MatMul", {"x", std::string("w") + part}, part));
  }
  graph.message(1, node("Attention", {"q", "k", "v"}, "mixed", heads));
  graph.message(1, node("Add", {"x", "mixed"}, "y"));
  if (m.trips > 0) graph.message(1, loop("y", "looped"));
  graph.message(1,
                node("MatMul", {m.trips > 0 ? "looped" : "y", "head"}, m.half ? "full" : "logits"));
  if (m.half) graph.message(1, node("Cast", {"full"}, "logits", {attribute("to", 10)}));
  graph.bytes(2, "tiny");
  graph.message(5, weight(random, "embedding", {m.vocab, m.width}));
  graph.message(5, weight(random, "table", {m.context, m.width}));
  for (const char* name : {"wq", "wk", "wv"}) {
    graph.message(5, weight(random, name, {m.width, m.width}));
  }
  graph.message(5, weight(random, "head", {m.width, m.vocab}));
  graph.message(5, ints("axis0", {0}, false));
  graph.message(5, ints("zero", {0}, true));
  graph.message(5, ints("one", {1}, true));
  if (m.trips > 0) graph.message(5, ints("trips", {m.trips}, true));
  graph.message(11, value("ids", 7, 0));
  graph.message(12, value("logits", m.half ? 10 : 1, m.declared));
  Message model;
  model.varint(1, 11).message(8, Message().bytes(1, "").varint(2, 23)).message(7, graph);
  model.message(14, Message().bytes(1, "kvik.note").bytes(2, "kept"));
  for (const auto& [key, text] : m.metadata) {
    model.message(14, Message().bytes(1, key).bytes(2, text));
  }
  const auto* data = reinterpret_cast<const std::byte*>(model.text().data());
  return {data, data + model.text().size()};
}

}  // namespace kvik::test
