// TensorProto and SparseTensorProto as constants of the graph.
#pragma once

#include <memory>
#include <string>

#include "graph/graph.h"
#include "onnx/external.h"
#include "onnx/proto.h"

namespace kvik::onnx {

// The element type of TensorProto.DataType. `what` names the tensor or value. Throws kInvalidModel
// for a number that ONNX does not define, kUnsupported for types that Kvik lacks.
DType dtype_from_onnx(std::int64_t data_type, const std::string& what);

class TensorReader {
 public:
  // `owner` keeps source.bytes alive for the constants that point into them.
  TensorReader(const Source& source, std::shared_ptr<const void> owner, ExternalFiles& files)
      : source_(source), owner_(std::move(owner)), files_(files) {}

  // The tensor, without a copy where the file has the elements as they are in memory. `what` names
  // it in errors: "initializer 'w'". Throws kInvalidModel, kUnsupported, kIo, or kOutOfMemory when
  // decoding would exceed the budget.
  graph::ConstantTensor read(const TensorView& tensor, const std::string& what);

  // The tensor with its zeros. Indices are checked to be ascending, distinct and in range.
  graph::ConstantTensor read_sparse(const SparseTensorView& tensor, const std::string& what);

 private:
  graph::ConstantTensor in_place(DType dtype, const Dims& dims, Bytes data,
                                 std::shared_ptr<const void> owner) const;
  graph::ConstantTensor read_external(const TensorView& tensor, DType dtype, const Dims& dims,
                                      std::int64_t bytes, const std::string& what);
  graph::ConstantTensor read_typed(const TensorView& tensor, DType dtype, const Dims& dims,
                                   std::int64_t bytes, const std::string& what);
  void decode_varints(const TensorView& tensor, int field, graph::ConstantTensor& out,
                      std::int64_t count, const std::string& what);
  void decode_fixed(const TensorView& tensor, int field, graph::ConstantTensor& out,
                    const std::string& what);

  const Source& source_;
  std::shared_ptr<const void> owner_;
  ExternalFiles& files_;
};

}  // namespace kvik::onnx
