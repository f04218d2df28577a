// Slots of the reference table that stand in a file of their own.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels::reference {

void weighted_sum_f32(const float* const* x, const float* w, int taps, std::int64_t n,
                      const float* bias, float* y);
void recurrent_cell_f32(const CellArgs& args);

}  // namespace kvik::kernels::reference
