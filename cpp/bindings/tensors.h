// Between numpy arrays and the engine's tensors.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvik/session.h"

namespace kvik::bindings {

// Anything that numpy or DLPack describes, on the CPU, C-contiguous; read only, never copied.
using ConstArray = nanobind::ndarray<nanobind::ro, nanobind::c_contig, nanobind::device::cpu>;
using Ids = nanobind::ndarray<const std::int64_t, nanobind::ndim<1>, nanobind::c_contig,
                              nanobind::device::cpu>;
using Floats =
    nanobind::ndarray<const float, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
using FloatMatrix = nanobind::ndarray<nanobind::numpy, float, nanobind::ndim<2>>;

// The engine's name for an array's element type. Throws kInvalidArgument naming `what` where it has
// none.
DType dtype_of(const nanobind::dlpack::dtype& dtype, const std::string& what);

// By name. Throws kInvalidArgument listing the names.
WeightType weight_type(std::string_view name);

// A numpy array that shares the tensor's memory and keeps it alive. Throws kUnsupported naming the
// output when numpy has no such element type (bfloat16, int4).
nanobind::object to_numpy(const OwnedTensor& tensor, const std::string& name);

// Uninitialised float32 [rows, columns] that numpy owns.
FloatMatrix empty_matrix(std::size_t rows, std::size_t columns);

// Text from a file, which may be anything but UTF-8: undecodable bytes become U+FFFD.
nanobind::str to_str(const std::string& text);

inline std::span<const std::int64_t> span_of(const Ids& ids) {
  return {ids.data(), ids.size()};
}

}  // namespace kvik::bindings
