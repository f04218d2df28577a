// In what precision a model's weights are kept in memory.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvik/export.h"

namespace kvik {

// Chosen when a model is loaded. Values between the operators are fp32 whatever it is, and keys and
// values of whatever type LoadOptions::cache says; what is rounded are the matrices of linear
// layers, the vocabulary projection among them, of recurrent layers and of convolutions but
// depthwise ones, and the inputs of their products as said below, and, by kI8 and kI4, embedding
// tables. A table whose rows the token ids look up has 8 bits and a
// scale per row by kI4 too, since rows of 4 bits cost more quality than everything else together;
// one that is also the vocabulary projection is multiplied by in the precision of the other layers.
// By kI8 such a table is kept once, for both; other rows are rounded as they are read from the
// mapped file. Tables of positions and small matrices (fewer than 32 inputs or 4096 elements) stay
// in fp32: they cost nothing. So do matrices of more than 2^17 inputs, whose sums of products of
// bytes could exceed 32 bits.
//
// A file may hold the integers itself, as DequantizeLinear or MatMulNBits; `kvik quantize` writes
// those that loading with kI8 or kI4 makes, and the numbers are bitwise the same (but of
// convolutions, which it leaves as they are). Such weights run
// as they are stored, whatever type is asked for, where they are symmetric (zero point 0, or the
// middle of an unsigned type) and have a scale per output channel, or, in 4 bits, a scale per block
// of a multiple of 32 inputs; scales of 4 bits are rounded to binary16 beside a power of two per
// channel, an error of 2^-11 at most. All others are widened when they are loaded and count as fp32
// weights, for which the type that is asked for holds.
enum class WeightType : std::uint8_t {
  kF32,
  // Rounded to nearest; sums in fp32. Where the CPU multiplies pairs of bfloat16 numbers
  // (AVX512_BF16, AMX) inputs are rounded too; elsewhere they stay in fp32.
  kBF16,
  // A scale per output channel; inputs become 8-bit integers row by row, at run time, but for up to
  // 8 in a row that are far larger than the others: those stay in fp32.
  kI8,
  kI4,  // a scale per output channel and 32 inputs; inputs as for kI8
};

// A matrix that a model multiplies by, or looks rows up in by token id.
struct MatrixInfo {
  std::string name;                    // of the value in the file
  std::array<std::int64_t, 2> dims{};  // as in the file, without what pads blocks
  WeightType type = WeightType::kF32;  // in memory
  bool stored = false;                 // the file holds these integers
  bool multiplied = false;             // by a linear or recurrent layer
  bool looked_up = false;              // by token id
  // Of a recurrent layer whose W or R it is, in the file of shape [directions, dims[0] /
  // directions, dims[1]]; 0: of any other.
  int directions = 0;
  int channel_axis = 0;   // of dims: output channels, or the tokens of a table
  std::string other_use;  // a node that reads it in yet another way; "" for none
};

// The integers of a matrix: W = values · scales.
struct IntegerMatrix {
  std::vector<std::int8_t>
      values;  // [dims[0], dims[1]]; in [-127, 127], or [-8, 7] for kI4; a file may hold -128
  // kI8: one for each channel. kI4: of the shape dims, but ceil(dim / 32) along the inputs' axis.
  std::vector<float> scales;
};

KVIK_API const char* weight_type_name(WeightType type) noexcept;  // "f32", "bf16", "int8", "int4"
// The type of that name; nullopt for any other.
KVIK_API std::optional<WeightType> parse_weight_type(std::string_view name) noexcept;

}  // namespace kvik
