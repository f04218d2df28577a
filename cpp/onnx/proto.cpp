#include "onnx/proto.h"

#include <algorithm>
#include <cstring>

#include "kvik/error.h"

namespace kvik::onnx {

namespace {

using StringPair = std::pair<std::string_view, std::string_view>;

// Growing a list of views is charged, so that a message of many tiny fields cannot take more memory
// than loading may.
template <typename T>
void append(const Source& source, std::vector<T>& list, T item, const char* what) {
  source.budget.take_memory(2 * static_cast<std::int64_t>(sizeof(T)), what);
  list.push_back(std::move(item));
}

std::string_view canonical_domain(std::string_view domain) {
  return domain == "ai.onnx" ? std::string_view() : domain;
}

OpsetId parse_opset(const Source& source, Bytes bytes) {
  Reader reader(source, bytes, "OperatorSetIdProto");
  OpsetId out;
  for (Field field; reader.next(field);) {
    if (field.number == 1) out.domain = canonical_domain(reader.string(field, "domain"));
    if (field.number == 2) out.version = reader.int64(field, "version");
  }
  return out;
}

StringPair parse_entry(const Source& source, Bytes bytes) {
  Reader reader(source, bytes, "StringStringEntryProto");
  StringPair out;
  for (Field field; reader.next(field);) {
    if (field.number == 1) out.first = reader.string(field, "key");
    if (field.number == 2) out.second = reader.string(field, "value");
  }
  return out;
}

// Appends the elements of a repeated int64 field, packed or not.
void append_ints(const Source& source, const Reader& reader, const Field& field, const char* name,
                 std::vector<std::int64_t>& out) {
  if (!field.is_bytes()) {
    append(source, out, reader.int64(field, name), name);
    return;
  }
  const std::byte* at = field.bytes.data();
  const std::byte* end = at + field.bytes.size();
  while (at != end) {
    std::uint64_t value = 0;
    const std::byte* start = at;
    if (!read_varint(&at, end, &value)) {
      reader.fail(start, "field '" + std::string(name) + "' holds a malformed varint");
    }
    append(source, out, static_cast<std::int64_t>(value), name);
  }
}

void append_floats(const Source& source, const Reader& reader, const Field& field, const char* name,
                   std::vector<float>& out) {
  if (!field.is_bytes()) {
    append(source, out, reader.float32(field, name), name);
    return;
  }
  if (field.bytes.size() % sizeof(float) != 0) {
    reader.fail(field.at, "field '" + std::string(name) + "' has " +
                              std::to_string(field.bytes.size()) + " bytes, no multiple of 4");
  }
  for (std::size_t i = 0; i < field.bytes.size(); i += sizeof(float)) {
    float value;
    std::memcpy(&value, field.bytes.data() + i, sizeof value);
    append(source, out, value, name);
  }
}

}  // namespace

const char* attribute_type_name(std::int64_t type) {
  constexpr const char* kNames[] = {"UNDEFINED",      "FLOAT",      "INT",        "STRING",
                                    "TENSOR",         "GRAPH",      "FLOATS",     "INTS",
                                    "STRINGS",        "TENSORS",    "GRAPHS",     "SPARSE_TENSOR",
                                    "SPARSE_TENSORS", "TYPE_PROTO", "TYPE_PROTOS"};
  if (type < 0 || type >= static_cast<std::int64_t>(std::size(kNames))) return nullptr;
  return kNames[type];
}

ModelView parse_model(const Source& source) {
  Reader reader(source, source.bytes, "ModelProto");
  ModelView out;
  for (Field field; reader.next(field);) {
    switch (field.number) {
      case 1: out.ir_version = reader.int64(field, "ir_version"); break;
      case 2: out.producer_name = reader.string(field, "producer_name"); break;
      case 3: out.producer_version = reader.string(field, "producer_version"); break;
      case 7:
        if (out.graph) reader.fail(field.at, "field 'graph' is there twice");
        out.graph = reader.bytes(field, "graph");
        break;
      case 8:
        append(source, out.opsets, parse_opset(source, reader.bytes(field, "opset_import")),
               "opset_import");
        break;
      case 14:
        append(source, out.metadata, parse_entry(source, reader.bytes(field, "metadata_props")),
               "metadata_props");
        break;
      case 25: append(source, out.functions, reader.bytes(field, "functions"), "functions"); break;
      default: break;
    }
  }
  return out;
}

GraphView parse_graph(const Source& source, Bytes bytes) {
  Reader reader(source, bytes, "GraphProto");
  GraphView out;
  for (Field field; reader.next(field);) {
    switch (field.number) {
      case 1:
        source.budget.take_node();
        append(source, out.nodes, reader.bytes(field, "node"), "node list");
        break;
      case 2: out.name = reader.string(field, "name"); break;
      case 5:
        append(source, out.initializers, reader.bytes(field, "initializer"), "initializer list");
        break;
      case 11: append(source, out.inputs, reader.bytes(field, "input"), "input list"); break;
      case 12: append(source, out.outputs, reader.bytes(field, "output"), "output list"); break;
      case 15:
        append(source, out.sparse_initializers, reader.bytes(field, "sparse_initializer"),
               "sparse_initializer list");
        break;
      default: break;
    }
  }
  return out;
}

void parse_node(const Source& source, Bytes bytes, NodeView& out) {
  Reader reader(source, bytes, "NodeProto");
  out.op = out.domain = out.overload = out.name = {};
  out.inputs.clear();
  out.outputs.clear();
  out.attributes.clear();
  for (Field field; reader.next(field);) {
    switch (field.number) {
      case 1: append(source, out.inputs, reader.string(field, "input"), "node's inputs"); break;
      case 2: append(source, out.outputs, reader.string(field, "output"), "node's outputs"); break;
      case 3: out.name = reader.string(field, "name"); break;
      case 4: out.op = reader.string(field, "op_type"); break;
      case 5:
        append(source, out.attributes, reader.bytes(field, "attribute"), "node's attributes");
        break;
      case 7: out.domain = canonical_domain(reader.string(field, "domain")); break;
      case 8: out.overload = reader.string(field, "overload"); break;
      default: break;
    }
  }
}

AttributeView parse_attribute(const Source& source, Bytes bytes) {
  Reader reader(source, bytes, "AttributeProto");
  AttributeView out;
  const auto holds = [&](const Field& field, AttributeType type) {
    if (out.holds != AttributeType::kUndefined && out.holds != type) {
      reader.fail(field.at, std::string("attribute holds both ") +
                                attribute_type_name(static_cast<std::int64_t>(out.holds)) +
                                " and " + attribute_type_name(static_cast<std::int64_t>(type)));
    }
    out.holds = type;
  };
  const auto message = [&](const Field& field, AttributeType type, const char* name) {
    if (out.holds == type) {
      reader.fail(field.at, std::string("field '") + name + "' is there twice");
    }
    holds(field, type);
    out.message = reader.bytes(field, name);
  };
  for (Field field; reader.next(field);) {
    switch (field.number) {
      case 1: out.name = reader.string(field, "name"); break;
      case 20: out.type = reader.int64(field, "type"); break;
      case 21: out.ref = reader.string(field, "ref_attr_name"); break;
      case 2:
        holds(field, AttributeType::kFloat);
        out.f = reader.float32(field, "f");
        break;
      case 3:
        holds(field, AttributeType::kInt);
        out.i = reader.int64(field, "i");
        break;
      case 4: {
        holds(field, AttributeType::kString);
        const Bytes s = reader.bytes(field, "s");
        out.s = {reinterpret_cast<const char*>(s.data()), s.size()};
        break;
      }
      case 5: message(field, AttributeType::kTensor, "t"); break;
      case 6: message(field, AttributeType::kGraph, "g"); break;
      case 22: message(field, AttributeType::kSparseTensor, "sparse_tensor"); break;
      case 14: message(field, AttributeType::kTypeProto, "tp"); break;
      case 7:
        holds(field, AttributeType::kFloats);
        append_floats(source, reader, field, "floats", out.floats);
        break;
      case 8:
        holds(field, AttributeType::kInts);
        append_ints(source, reader, field, "ints", out.ints);
        break;
      case 9: {
        holds(field, AttributeType::kStrings);
        const Bytes s = reader.bytes(field, "strings");
        append(source, out.strings,
               std::string_view(reinterpret_cast<const char*>(s.data()), s.size()), "strings");
        break;
      }
      case 10: holds(field, AttributeType::kTensors); break;
      case 11: holds(field, AttributeType::kGraphs); break;
      case 15: holds(field, AttributeType::kTypeProtos); break;
      case 23: holds(field, AttributeType::kSparseTensors); break;
      default: break;
    }
  }
  return out;
}

namespace {

// dims, packed or not: the first kMaxRank are kept, all are counted.
void add_dims(const Reader& reader, const Field& field, TensorView& out) {
  const auto add = [&](std::int64_t dim) {
    if (out.rank < out.dims.size()) out.dims[out.rank] = dim;
    ++out.rank;
  };
  if (!field.is_bytes()) return add(reader.int64(field, "dims"));
  const std::byte* at = field.bytes.data();
  const std::byte* end = at + field.bytes.size();
  while (at != end) {
    std::uint64_t value = 0;
    if (!read_varint(&at, end, &value)) reader.fail(field.at, "dims holds a malformed varint");
    add(static_cast<std::int64_t>(value));
  }
}

void add_data(const Reader& reader, const Field& field, const char* name, WireType element,
              PackedField& out) {
  if (field.type != element && !field.is_bytes()) reader.bytes(field, name);  // throws
  // An empty packed chunk carries no elements: some writers emit it beside raw_data.
  if (field.is_bytes() && field.bytes.empty()) return;
  ++out.chunks;
  out.packed &= field.is_bytes();
  out.bytes = field.bytes;
}

}  // namespace

TensorView parse_tensor(const Source& source, Bytes bytes) {
  Reader reader(source, bytes, "TensorProto");
  TensorView out;
  out.message = bytes;
  for (Field field; reader.next(field);) {
    switch (field.number) {
      case 1: add_dims(reader, field, out); break;
      case 2: out.data_type = reader.int64(field, "data_type"); break;
      case 3: out.has_segment = true; break;
      case 4:
        add_data(reader, field, "float_data", WireType::kFixed32, out.data[TensorView::kFloatData]);
        break;
      case 5:
        add_data(reader, field, "int32_data", WireType::kVarint, out.data[TensorView::kInt32Data]);
        break;
      case 6: {
        reader.bytes(field, "string_data");
        PackedField& strings = out.data[TensorView::kStringData];
        ++strings.chunks;
        strings.packed = false;
        break;
      }
      case 7:
        add_data(reader, field, "int64_data", WireType::kVarint, out.data[TensorView::kInt64Data]);
        break;
      case 8: out.name = reader.string(field, "name"); break;
      case 9: out.raw_data = reader.bytes(field, "raw_data"); break;
      case 10:
        add_data(reader, field, "double_data", WireType::kFixed64,
                 out.data[TensorView::kDoubleData]);
        break;
      case 11:
        add_data(reader, field, "uint64_data", WireType::kVarint,
                 out.data[TensorView::kUint64Data]);
        break;
      case 13:
        append(source, out.external, parse_entry(source, reader.bytes(field, "external_data")),
               "external_data");
        break;
      case 14: {
        const std::int64_t location = reader.int64(field, "data_location");
        if (location != 0 && location != 1) {
          reader.fail(field.at, "data_location " + std::to_string(location) +
                                    " is neither DEFAULT (0) nor EXTERNAL (1)");
        }
        out.is_external = location == 1;
        break;
      }
      default: break;
    }
  }
  return out;
}

SparseTensorView parse_sparse_tensor(const Source& source, Bytes bytes) {
  Reader reader(source, bytes, "SparseTensorProto");
  SparseTensorView out;
  for (Field field; reader.next(field);) {
    if (field.number == 1) out.values = reader.bytes(field, "values");
    if (field.number == 2) out.indices = reader.bytes(field, "indices");
    if (field.number == 3) append_ints(source, reader, field, "dims", out.dims);
  }
  return out;
}

namespace {

DimView parse_dim(const Source& source, Bytes bytes) {
  Reader reader(source, bytes, "TensorShapeProto.Dimension");
  DimView out;
  for (Field field; reader.next(field);) {
    if (field.number == 1) out = {reader.int64(field, "dim_value"), {}};
    if (field.number == 2) out = {std::nullopt, reader.string(field, "dim_param")};
  }
  return out;
}

void parse_shape(const Source& source, Bytes bytes, ValueInfoView& out) {
  Reader reader(source, bytes, "TensorShapeProto");
  out.has_shape = true;
  for (Field field; reader.next(field);) {
    if (field.number == 1) {
      append(source, out.dims, parse_dim(source, reader.bytes(field, "dim")), "dimensions");
    }
  }
}

void parse_tensor_type(const Source& source, Bytes bytes, ValueInfoView& out) {
  Reader reader(source, bytes, "TypeProto.Tensor");
  for (Field field; reader.next(field);) {
    if (field.number == 1) out.elem_type = reader.int64(field, "elem_type");
    if (field.number == 2) parse_shape(source, reader.bytes(field, "shape"), out);
  }
}

}  // namespace

ValueInfoView parse_value_info(const Source& source, Bytes bytes) {
  Reader reader(source, bytes, "ValueInfoProto");
  ValueInfoView out;
  for (Field field; reader.next(field);) {
    if (field.number == 1) out.name = reader.string(field, "name");
    if (field.number != 2) continue;
    // Only tensors are entered: sequences of sequences and their kin are not walked, however deep.
    Reader type(source, reader.bytes(field, "type"), "TypeProto");
    for (Field inner; type.next(inner);) {
      const bool is_value = inner.number != 6;  // denotation
      out.has_type |= is_value;
      if (inner.number != 1) continue;
      out.is_tensor = true;
      parse_tensor_type(source, type.bytes(inner, "tensor_type"), out);
    }
  }
  return out;
}

FunctionView parse_function(const Source& source, Bytes bytes) {
  Reader reader(source, bytes, "FunctionProto");
  FunctionView out;
  for (Field field; reader.next(field);) {
    switch (field.number) {
      case 1: out.name = reader.string(field, "name"); break;
      case 4: append(source, out.inputs, reader.string(field, "input"), "function's inputs"); break;
      case 5:
        append(source, out.outputs, reader.string(field, "output"), "function's outputs");
        break;
      case 6:
        append(source, out.attributes, reader.string(field, "attribute"), "function's attributes");
        break;
      case 7: append(source, out.nodes, reader.bytes(field, "node"), "function's nodes"); break;
      case 9:
        append(source, out.opsets, parse_opset(source, reader.bytes(field, "opset_import")),
               "opset_import");
        break;
      case 10: out.domain = canonical_domain(reader.string(field, "domain")); break;
      case 11:
        append(source, out.attribute_defaults, reader.bytes(field, "attribute_proto"),
               "function's attributes");
        break;
      case 13: out.overload = reader.string(field, "overload"); break;
      default: break;
    }
  }
  return out;
}

}  // namespace kvik::onnx
