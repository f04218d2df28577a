// The reference's recurrent cells and weighted sums: functions in double, states rounded to float
// where the contract has a float.
#include "kernels/reference.h"

#include <algorithm>
#include <cmath>

namespace kvik::kernels::reference {

namespace {

double apply(const CellActivation& a, double x) {
  switch (a.function) {
    case CellFunction::kAffine: return a.alpha * x + a.beta;
    case CellFunction::kElu: return x < 0.0 ? a.alpha * std::expm1(x) : x;
    case CellFunction::kHardSigmoid: return std::max(0.0, std::min(1.0, a.alpha * x + a.beta));
    case CellFunction::kLeakyRelu: return x < 0.0 ? a.alpha * x : x;
    case CellFunction::kRelu: return x < 0.0 ? 0.0 : x;
    case CellFunction::kScaledTanh: return a.alpha * std::tanh(a.beta * x);
    case CellFunction::kSigmoid: return 1.0 / (1.0 + std::exp(-x));
    case CellFunction::kSoftplus: return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x)));
    case CellFunction::kSoftsign: return x / (1.0 + std::fabs(x));
    case CellFunction::kTanh: return std::tanh(x);
    case CellFunction::kThresholdedRelu: return x <= a.alpha ? 0.0 : x;
  }
  return x;
}

double clipped(double x, double clip) {
  return x < -clip ? -clip : x > clip ? clip : x;  // NaN passes
}

}  // namespace

void weighted_sum_f32(const float* const* x, const float* w, int taps, std::int64_t n,
                      const float* bias, float* y) {
  for (std::int64_t i = 0; i < n; ++i) {
    float sum = 0.0f;
    for (int t = 0; t < taps; ++t) {
      if (x[t] != nullptr) sum = std::fma(x[t][i], w[t * n + i], sum);
    }
    y[i] = bias ? sum + bias[i] : sum;
  }
}

void recurrent_cell_f32(const CellArgs& a) {
  const double clip = a.clip;
  const auto f = [&](double x) { return apply(a.f, clipped(x, clip)); };
  const auto g = [&](double x) { return apply(a.g, clipped(x, clip)); };
  for (std::int64_t r = 0; r < a.rows; ++r) {
    for (std::int64_t i = 0; i < a.n; ++i) {
      const auto gate = [&](int which) -> float& { return a.gates[which][r * a.gates_stride + i]; };
      const auto peep = [&](int which, double state) {
        return a.peepholes[0] ? a.peepholes[which][i] * state : 0.0;
      };
      const double state = a.state ? a.state[r * a.state_stride + i] : 0.0;
      float* out = a.out ? a.out + r * a.out_stride + i : nullptr;
      switch (a.stage) {
        case CellStage::kRnn: *out = static_cast<float>(f(gate(0))); break;
        case CellStage::kGruReset: gate(0) = static_cast<float>(f(gate(0)) * state); break;
        case CellStage::kGru:
        case CellStage::kGruLinear: {
          double sum = gate(1);
          if (a.stage == CellStage::kGruLinear) sum += f(gate(2)) * gate(3);
          const double update = f(gate(0));
          *out = static_cast<float>((1.0 - update) * g(sum) + update * state);
          break;
        }
        case CellStage::kLstm: {
          float& cell = a.cell[r * a.cell_stride + i];
          const double input = f(gate(0) + peep(0, cell));
          const double forget = a.coupled ? 1.0 - input : f(gate(2) + peep(2, cell));
          cell = static_cast<float>(forget * cell + input * g(gate(3)));
          *out = static_cast<float>(f(gate(1) + peep(1, cell)) * apply(a.h, cell));
          break;
        }
      }
    }
  }
}

}  // namespace kvik::kernels::reference
