// Views of the messages of onnx.proto: their fields found, their content left where it is.
//
// A view is cheap: nested messages stay bytes until someone parses them, and nothing is read twice
// without need. Views are valid as long as the bytes they were parsed from. Fields that do not
// matter to an inference engine are skipped, as unknown ones are.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/dims.h"
#include "onnx/wire.h"

namespace kvik::onnx {

struct OpsetId {
  std::string_view domain;  // "ai.onnx" is written ""
  std::int64_t version = 0;
};

struct ModelView {
  std::optional<std::int64_t> ir_version;
  std::vector<OpsetId> opsets;
  std::string_view producer_name;
  std::string_view producer_version;
  std::optional<Bytes> graph;
  std::vector<std::pair<std::string_view, std::string_view>> metadata;
  std::vector<Bytes> functions;
};

struct GraphView {
  std::string_view name;
  std::vector<Bytes> nodes;
  std::vector<Bytes> initializers;
  std::vector<Bytes> sparse_initializers;
  std::vector<Bytes> inputs;
  std::vector<Bytes> outputs;
};

struct NodeView {
  std::string_view op;
  std::string_view domain;  // "ai.onnx" is written ""
  std::string_view overload;
  std::string_view name;
  std::vector<std::string_view> inputs;   // "" where left out
  std::vector<std::string_view> outputs;  // "" where left out
  std::vector<Bytes> attributes;
};

// AttributeProto.AttributeType
enum class AttributeType : std::int64_t {
  kUndefined = 0,
  kFloat = 1,
  kInt = 2,
  kString = 3,
  kTensor = 4,
  kGraph = 5,
  kFloats = 6,
  kInts = 7,
  kStrings = 8,
  kTensors = 9,
  kGraphs = 10,
  kSparseTensor = 11,
  kSparseTensors = 12,
  kTypeProto = 13,
  kTypeProtos = 14,
};

// "INT", "FLOATS", ... as onnx.proto spells them; "type 99" is not there: null.
const char* attribute_type_name(std::int64_t type);

struct AttributeView {
  std::string_view name;
  std::string_view ref;   // attribute of the enclosing function that this one stands for
  std::int64_t type = 0;  // an AttributeType, or anything
  // The type whose field holds the value, or kUndefined where there is none. An attribute with
  // values in the fields of two types is refused while parsing.
  AttributeType holds = AttributeType::kUndefined;
  float f = 0;
  std::int64_t i = 0;
  std::string_view s;
  Bytes message;  // t, g or sparse_tensor
  std::vector<float> floats;
  std::vector<std::int64_t> ints;
  std::vector<std::string_view> strings;
};

// A repeated numeric field of a tensor: where its elements are.
struct PackedField {
  Bytes bytes;               // of the only chunk, when there is one
  std::uint32_t chunks = 0;  // a packed chunk, or one element that is not packed
  bool packed = true;        // all chunks were packed
};

struct TensorView {
  // The typed fields, by what the wire holds.
  enum DataField { kFloatData, kInt32Data, kStringData, kInt64Data, kDoubleData, kUint64Data };
  static constexpr int kDataFields = 6;

  std::string_view name;
  std::int64_t data_type = 0;  // TensorProto.DataType, or anything
  std::array<std::int64_t, kMaxRank> dims{};
  std::size_t rank = 0;  // may exceed kMaxRank: dims then holds the first ones
  std::array<PackedField, kDataFields> data;
  std::optional<Bytes> raw_data;
  bool has_segment = false;
  bool is_external = false;
  std::vector<std::pair<std::string_view, std::string_view>> external;
  Bytes message;  // the whole tensor
};

struct SparseTensorView {
  std::optional<Bytes> values;
  std::optional<Bytes> indices;
  std::vector<std::int64_t> dims;
};

struct DimView {
  std::optional<std::int64_t> value;
  std::string_view param;
};

struct ValueInfoView {
  std::string_view name;
  bool has_type = false;
  bool is_tensor = false;  // not a sequence, map, optional or sparse tensor
  std::int64_t elem_type = 0;
  bool has_shape = false;
  std::vector<DimView> dims;
};

struct FunctionView {
  std::string_view name;
  std::string_view domain;
  std::string_view overload;
  std::vector<std::string_view> inputs;
  std::vector<std::string_view> outputs;
  std::vector<std::string_view> attributes;  // without default
  std::vector<Bytes> attribute_defaults;     // AttributeProto
  std::vector<Bytes> nodes;
  std::vector<OpsetId> opsets;
};

ModelView parse_model(const Source& source);
GraphView parse_graph(const Source& source, Bytes bytes);
void parse_node(const Source& source, Bytes bytes, NodeView& out);  // reuses out's memory
AttributeView parse_attribute(const Source& source, Bytes bytes);
TensorView parse_tensor(const Source& source, Bytes bytes);
SparseTensorView parse_sparse_tensor(const Source& source, Bytes bytes);
ValueInfoView parse_value_info(const Source& source, Bytes bytes);
FunctionView parse_function(const Source& source, Bytes bytes);

}  // namespace kvik::onnx
