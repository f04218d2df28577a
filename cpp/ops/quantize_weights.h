// Weight matrices in low precision, in the layouts of the kernel table.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace kvik::ops {

// Every function packs one panel of `width` columns from a block of float weights [k, columns],
// columns <= width; columns beyond, and k beyond, are zeros. See kernels.h for the layouts.

// Bytes of one panel.
std::size_t panel_bytes_bf16(std::int64_t k, int width);
std::size_t panel_bytes_i8(std::int64_t k, int width);
std::size_t panel_bytes_i4(std::int64_t k, int width);

// Rounded to nearest, ties to even.
void pack_bf16(const float* block, std::int64_t k, int columns, int width, std::uint16_t* panel);

// Symmetric: column_scale[c] = max|w| / 127 over the column.
void pack_i8(const float* block, std::int64_t k, int columns, int width, std::uint8_t* panel,
             float* column_scale);

// Symmetric in groups of kGroup: integers in [-8, 7]. The scale of a group is the best of a few
// that put its largest weight near -8, in the sense of least squares (see choose_scales).
void pack_i4(const float* block, std::int64_t k, int columns, int width, std::uint8_t* panel,
             float* column_scale);

}  // namespace kvik::ops
