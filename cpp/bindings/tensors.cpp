#include "bindings/tensors.h"

#include <array>
#include <memory>
#include <optional>
#include <utility>

#include "bindings/bindings.h"
#include "kvik/error.h"

namespace nb = nanobind;

namespace kvik::bindings {
namespace {

struct DTypePair {
  DType kvik;
  nb::dlpack::dtype dlpack;
};

constexpr nb::dlpack::dtype dlpack_dtype(nb::dlpack::dtype_code code, std::uint8_t bits) {
  return {static_cast<std::uint8_t>(code), bits, 1};
}

// The element types that numpy has too.
constexpr std::array<DTypePair, 12> kDTypes = {{
    {DType::kF32, dlpack_dtype(nb::dlpack::dtype_code::Float, 32)},
    {DType::kF16, dlpack_dtype(nb::dlpack::dtype_code::Float, 16)},
    {DType::kF64, dlpack_dtype(nb::dlpack::dtype_code::Float, 64)},
    {DType::kI8, dlpack_dtype(nb::dlpack::dtype_code::Int, 8)},
    {DType::kU8, dlpack_dtype(nb::dlpack::dtype_code::UInt, 8)},
    {DType::kI16, dlpack_dtype(nb::dlpack::dtype_code::Int, 16)},
    {DType::kU16, dlpack_dtype(nb::dlpack::dtype_code::UInt, 16)},
    {DType::kI32, dlpack_dtype(nb::dlpack::dtype_code::Int, 32)},
    {DType::kU32, dlpack_dtype(nb::dlpack::dtype_code::UInt, 32)},
    {DType::kI64, dlpack_dtype(nb::dlpack::dtype_code::Int, 64)},
    {DType::kU64, dlpack_dtype(nb::dlpack::dtype_code::UInt, 64)},
    {DType::kBool, dlpack_dtype(nb::dlpack::dtype_code::Bool, 8)},
}};

// int where the size is known, str where it has a name, None where nothing is known.
nb::object dimension_to_python(const Dimension& dimension) {
  if (dimension.size >= 0) return nb::int_(dimension.size);
  if (!dimension.symbol.empty()) return to_str(dimension.symbol);
  return nb::none();
}

nb::object shape_to_python(const TensorInfo& info) {
  if (!info.has_shape) return nb::none();
  nb::list shape;
  for (const Dimension& dimension : info.shape) shape.append(dimension_to_python(dimension));
  return shape;
}

}  // namespace

DType dtype_of(const nb::dlpack::dtype& dtype, const std::string& what) {
  for (const DTypePair& pair : kDTypes) {
    if (pair.dlpack == dtype) return pair.kvik;
  }
  throw Error(ErrorCode::kInvalidArgument,
              what +
                  " has an element type that Kvik does not take from numpy; pass float32, "
                  "float16, float64, bool or an integer type of 8 to 64 bits");
}

WeightType weight_type(std::string_view name) {
  if (const auto type = parse_weight_type(name)) return *type;
  throw Error(ErrorCode::kInvalidArgument,
              "weights is '" + std::string(name) + "'; expected 'f32', 'bf16', 'int8' or 'int4'");
}

nb::object to_numpy(const OwnedTensor& tensor, const std::string& name) {
  std::optional<nb::dlpack::dtype> dtype;
  for (const DTypePair& pair : kDTypes) {
    if (pair.kvik == tensor.dtype) dtype = pair.dlpack;
  }
  if (!dtype) {
    throw Error(ErrorCode::kUnsupported, "output '" + name + "' is " + dtype_name(tensor.dtype) +
                                             ", which numpy has no type for: cast it to float32 "
                                             "in the model, or leave it out of output_names");
  }
  auto owner = std::make_unique<std::shared_ptr<void>>(tensor.data);
  if (*owner == nullptr) *owner = std::make_shared<std::int64_t>(0);  // no elements: any address
  void* data = owner->get();
  nb::capsule capsule(owner.get(),
                      [](void* p) noexcept { delete static_cast<std::shared_ptr<void>*>(p); });
  owner.release();  // the capsule's now
  const std::vector<std::size_t> shape(tensor.dims.begin(), tensor.dims.end());
  return nb::cast(
      nb::ndarray<nb::numpy>(data, shape.size(), shape.data(), capsule, nullptr, *dtype));
}

FloatMatrix empty_matrix(std::size_t rows, std::size_t columns) {
  auto memory = std::unique_ptr<float[]>(new float[rows * columns]);
  nb::capsule owner(memory.get(), [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return FloatMatrix(memory.release(), {rows, columns}, owner);
}

nb::str to_str(const std::string& text) {
  PyObject* decoded =
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace");
  if (decoded == nullptr) throw nb::python_error();
  return nb::steal<nb::str>(decoded);
}

void init_tensors(nb::module_& module) {
  nb::class_<TensorInfo>(module, "TensorInfo", "What a model says of an input or output.")
      .def_prop_ro(
          "name", [](const TensorInfo& self) { return to_str(self.name); }, "Its name in the file.")
      .def_prop_ro(
          "dtype", [](const TensorInfo& self) { return dtype_name(self.dtype); },
          "Its element type in numpy's spelling, e.g. \"float32\".")
      .def_prop_ro("shape", shape_to_python,
                   nb::sig("def shape(self) -> list[int | str | None] | None"),
                   "Sizes, names of symbolic dimensions, None where nothing is known, outermost "
                   "first; None when not even the rank is known.");
}

}  // namespace kvik::bindings
