// What each tile register of AMX holds, as the processor reads it.
#pragma once

#include <cstdint>

namespace kvik::kernels {
namespace {

// A thread's tiles have no shape until it has set one: an instruction on them is illegal before.
struct alignas(64) TileShapes {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes[16] = {};  // of a row
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

}  // namespace
}  // namespace kvik::kernels
