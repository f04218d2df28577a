// What follows the products of a recurrent cell, in one pass. Include a vec_*.h, math.inl.h and
// elementwise.inl.h first.
#pragma once

#include "kernels/kernels.h"

namespace kvik::kernels {
namespace {

struct SigmoidGate {
  Vec operator()(Vec x) const { return sigmoid(x); }
};
struct TanhGate {
  Vec operator()(Vec x) const { return tanh(x); }
};

// Any function, chosen anew for every vector: the branch is the same each time. Not inlined: a cell
// would have a dozen copies.
[[gnu::noinline]] Vec cell_function(const CellActivation& a, Vec x) {
  const Vec alpha = set(a.alpha), beta = set(a.beta);
  switch (a.function) {
    case CellFunction::kAffine: return fma(alpha, x, beta);
    case CellFunction::kElu: return select(x < zero(), alpha * (exp(x) - set(1.0f)), x);
    case CellFunction::kHardSigmoid: return max(zero(), min(set(1.0f), fma(alpha, x, beta)));
    case CellFunction::kLeakyRelu: return select(x < zero(), alpha * x, x);
    case CellFunction::kRelu: return relu(x);
    case CellFunction::kScaledTanh: return alpha * tanh(beta * x);
    case CellFunction::kSigmoid: return sigmoid(x);
    // ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|), which overflows nowhere.
    case CellFunction::kSoftplus: return relu(x) + log(set(1.0f) + exp(negate(abs(x))));
    case CellFunction::kSoftsign: return x / (set(1.0f) + abs(x));
    case CellFunction::kTanh: return tanh(x);
    case CellFunction::kThresholdedRelu: return select(x <= alpha, zero(), x);
  }
  return x;
}

struct AnyGate {
  CellActivation a;
  Vec operator()(Vec x) const { return cell_function(a, x); }
};

// Within [-clip, clip]; NaN passes.
inline Vec clipped(Vec x, Vec clip) {
  return min(clip, max(negate(clip), x));
}

template <typename F, typename G, typename H>
void lstm_row(const CellArgs& a, float* const (&gates)[4], float* cell, float* out, F f, G g, H h) {
  const Vec clip = set(a.clip);
  const bool peepholes = a.peepholes[0] != nullptr;
  for_vectors(a.n, [&](std::int64_t i, auto part) {
    const auto gate = [&](int which) { return load(gates[which] + i, part); };
    const auto peep = [&](int which, Vec state, Vec sum) {
      return peepholes ? fma(load(a.peepholes[which] + i, part), state, sum) : sum;
    };
    const Vec before = load(cell + i, part);
    const Vec input = f(clipped(peep(0, before, gate(0)), clip));
    const Vec forget = a.coupled ? set(1.0f) - input : f(clipped(peep(2, before, gate(2)), clip));
    const Vec after = fma(forget, before, input * g(clipped(gate(3), clip)));
    store(cell + i, after, part);
    store(out + i, f(clipped(peep(1, after, gate(1)), clip)) * h(after), part);
  });
}

template <typename F, typename G>
void gru_row(const CellArgs& a, float* const (&gates)[4], const float* state, float* out, F f,
             G g) {
  const Vec clip = set(a.clip);
  const bool linear = a.stage == CellStage::kGruLinear;
  for_vectors(a.n, [&](std::int64_t i, auto part) {
    const Vec update = f(clipped(load(gates[0] + i, part), clip));
    Vec sum = load(gates[1] + i, part);
    if (linear) {
      const Vec reset = f(clipped(load(gates[2] + i, part), clip));
      sum = fma(reset, load(gates[3] + i, part), sum);
    }
    const Vec fresh = g(clipped(sum, clip));
    const Vec kept = load(state + i, part);
    store(out + i, fma(update, kept, (set(1.0f) - update) * fresh), part);
  });
}

template <typename F, typename G, typename H>
void cell_rows(const CellArgs& a, F f, G g, H h) {
  const Vec clip = set(a.clip);
  for (std::int64_t r = 0; r < a.rows; ++r) {
    float* gates[4];
    for (int i = 0; i < 4; ++i) gates[i] = a.gates[i] ? a.gates[i] + r * a.gates_stride : nullptr;
    float* out = a.out ? a.out + r * a.out_stride : nullptr;
    const float* state = a.state ? a.state + r * a.state_stride : nullptr;
    switch (a.stage) {
      case CellStage::kRnn:
        map(gates[0], a.n, out, [&](Vec x) { return f(clipped(x, clip)); });
        break;
      case CellStage::kGruReset:
        for_vectors(a.n, [&](std::int64_t i, auto part) {
          const Vec reset = f(clipped(load(gates[0] + i, part), clip));
          store(gates[0] + i, reset * load(state + i, part), part);
        });
        break;
      case CellStage::kGru:
      case CellStage::kGruLinear: gru_row(a, gates, state, out, f, g); break;
      case CellStage::kLstm: lstm_row(a, gates, a.cell + r * a.cell_stride, out, f, g, h); break;
    }
  }
}

void recurrent_cell_f32(const CellArgs& args) {
  const auto is = [](const CellActivation& a, CellFunction f) { return a.function == f; };
  const bool usual = is(args.f, CellFunction::kSigmoid) && is(args.g, CellFunction::kTanh) &&
                     (args.stage != CellStage::kLstm || is(args.h, CellFunction::kTanh));
  if (usual) return cell_rows(args, SigmoidGate{}, TanhGate{}, TanhGate{});
  cell_rows(args, AnyGate{args.f}, AnyGate{args.g}, AnyGate{args.h});
}

}  // namespace
}  // namespace kvik::kernels
