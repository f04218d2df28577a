// LSTM, GRU and RNN as operators: the same bits whatever the threads, the batch and where a
// sequence is cut; reduced precision; attributes and shapes that make no sense.
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/support.h"
#include "kvik/error.h"
#include "runtime/random_given.h"

using kvik::Dims;
using kvik::DType;
using kvik::ErrorCode;
using kvik::WeightType;
using namespace kvik::test;  // NOLINT: the names of this harness

namespace {

struct Layer {
  std::string op;
  std::int64_t gates;
  Attributes attributes = {};

  bool lstm() const { return op == "LSTM"; }
};

const Layer kLayers[] = {
    {"LSTM", 4}, {"GRU", 3}, {"GRU", 3, {{"linear_before_reset", std::int64_t{1}}}}, {"RNN", 1}};

// Inputs X, W, R, B and the states; P too for an LSTM.
std::vector<Given> inputs_of(const Layer& layer, std::int64_t directions, std::int64_t steps,
                             std::int64_t batch, std::int64_t input, std::int64_t hidden,
                             std::uint64_t stream) {
  const std::int64_t rows = layer.gates * hidden;
  std::vector<Given> v;
  v.push_back(random({steps, batch, input}, stream));
  v.push_back(random({directions, rows, input}, stream + 1));
  v.push_back(random({directions, rows, hidden}, stream + 2));
  v.push_back(random({directions, 2 * rows}, stream + 3));
  v.push_back(Given{});
  v.push_back(random({directions, batch, hidden}, stream + 4));
  if (layer.lstm()) {
    v.push_back(random({directions, batch, hidden}, stream + 5));
    v.push_back(random({directions, 3 * hidden}, stream + 6));
  }
  return v;
}

OneNode node_of(const Layer& layer, const std::string& direction) {
  OneNode node{.op = layer.op, .attributes = layer.attributes, .outputs = layer.lstm() ? 3 : 2};
  node.constants = {1, 2};
  node.attributes["direction"] = direction;
  return node;
}

std::vector<float> all_values(const std::vector<kvik::runtime::OwnedTensor>& results) {
  std::vector<float> all;
  for (const auto& result : results) {
    const auto values = values_of<float>(result);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

// Steps [begin, end) of X [steps, batch, input].
Given steps_of(const Given& x, std::int64_t begin, std::int64_t end) {
  Dims dims = x.tensor.dims;
  dims[0] = end - begin;
  const std::int64_t step = dims[1] * dims[2];
  const float* p = x.tensor.as<float>();
  return floats(dims, {p + begin * step, p + end * step});
}

Given given_of(const kvik::runtime::OwnedTensor& result) {
  return floats(result.tensor.dims, values_of<float>(result));
}

Given lengths_of(const std::vector<std::int32_t>& lengths) {
  return Given::of(DType::kI32, {static_cast<std::int64_t>(lengths.size())}, lengths);
}

ErrorCode code_of(const OneNode& node, const std::vector<Given>& inputs, std::string* message) {
  try {
    node.run(inputs);
  } catch (const kvik::Error& error) {
    *message = error.what();
    return error.code();
  }
  *message = "it ran";
  return ErrorCode::kInternal;
}

}  // namespace

KVIK_TEST(threads_do_not_change_a_bit) {
  for_each_isa([](const kvik::kernels::KernelTable& table) {
    for (const Layer& layer : kLayers) {
      for (const WeightType type :
           {WeightType::kF32, WeightType::kBF16, WeightType::kI8, WeightType::kI4}) {
        OneNode node = node_of(layer, "bidirectional");
        node.table = &table;
        node.weights = type;
        const auto inputs = inputs_of(layer, 2, 5, 9, 40, 200, 1);
        node.threads = 1;
        const auto expected = all_values(node.run(inputs));
        for (const int threads : {2, 3}) {
          node.threads = threads;
          CHECK(same_bits(all_values(node.run(inputs)), expected))
              << layer.op << ", " << kvik::weight_type_name(type) << ", " << threads << " threads, "
              << table.name;
        }
      }
    }
  });
}

KVIK_TEST(a_sequence_can_be_cut) {
  for_each_isa([](const kvik::kernels::KernelTable& table) {
    for (const Layer& layer : kLayers) {
      for (const WeightType type : {WeightType::kF32, WeightType::kI8}) {
        OneNode node = node_of(layer, "forward");
        node.table = &table;
        node.weights = type;
        auto inputs = inputs_of(layer, 1, 7, 3, 33, 130, 2);
        const auto whole = node.run(inputs);
        const Given x = floats({7, 3, 33}, [&] {
          const float* p = inputs[0].tensor.as<float>();
          return std::vector<float>(p, p + 7 * 3 * 33);
        }());
        for (const std::int64_t cut : {1, 4, 6}) {
          auto first = inputs_of(layer, 1, 7, 3, 33, 130, 2);
          first[0] = steps_of(x, 0, cut);
          const auto before = node.run(first);
          auto second = inputs_of(layer, 1, 7, 3, 33, 130, 2);
          second[0] = steps_of(x, cut, 7);
          second[5] = given_of(before[1]);
          if (layer.lstm()) second[6] = given_of(before[2]);
          const auto after = node.run(second);
          auto joined = values_of<float>(before[0]);
          const auto rest = values_of<float>(after[0]);
          joined.insert(joined.end(), rest.begin(), rest.end());
          CHECK(same_bits(joined, values_of<float>(whole[0]))) << layer.op << " cut at " << cut;
          CHECK(same_bits(values_of<float>(after[1]), values_of<float>(whole[1]))) << layer.op;
          if (layer.lstm()) {
            CHECK(same_bits(values_of<float>(after[2]), values_of<float>(whole[2])));
          }
        }
      }
    }
  });
}

// Each sequence of a ragged batch, in both directions, is what it is alone.
KVIK_TEST(sequences_do_not_know_of_each_other) {
  const std::vector<std::int32_t> lengths{4, 6, 0, 5, 1};
  const std::int64_t batch = 5, steps = 6, input = 12, hidden = 70;
  for_each_isa([&](const kvik::kernels::KernelTable& table) {
    for (const Layer& layer : kLayers) {
      for (const std::string direction : {"bidirectional", "reverse"}) {
        const std::int64_t directions = direction == "reverse" ? 1 : 2;
        OneNode node = node_of(layer, direction);
        node.table = &table;
        auto inputs = inputs_of(layer, directions, steps, batch, input, hidden, 3);
        inputs[4] = lengths_of(lengths);
        const auto together = node.run(inputs);
        const auto y = values_of<float>(together[0]);
        for (std::int64_t b = 0; b < batch; ++b) {
          const std::int64_t length = lengths[static_cast<std::size_t>(b)];
          auto alone = inputs_of(layer, directions, steps, batch, input, hidden, 3);
          std::vector<float> x;
          for (std::int64_t t = 0; t < length; ++t) {
            const float* p = inputs[0].tensor.as<float>() + (t * batch + b) * input;
            x.insert(x.end(), p, p + input);
          }
          alone[0] = floats({length, 1, input}, x);
          for (std::size_t i = 5; i < (layer.lstm() ? 7u : 6u); ++i) {
            std::vector<float> state;
            for (std::int64_t d = 0; d < directions; ++d) {
              const float* p = inputs[i].tensor.as<float>() + (d * batch + b) * hidden;
              state.insert(state.end(), p, p + hidden);
            }
            alone[i] = floats({directions, 1, hidden}, state);
          }
          const auto one = node.run(alone);
          const auto expected = values_of<float>(one[0]);
          for (std::int64_t t = 0; t < steps; ++t) {
            for (std::int64_t d = 0; d < directions; ++d) {
              const auto at = y.begin() + ((t * directions + d) * batch + b) * hidden;
              const std::vector<float> got(at, at + hidden);
              std::vector<float> want(static_cast<std::size_t>(hidden), 0.0f);
              if (t < length) {
                const auto from = expected.begin() + (t * directions + d) * hidden;
                want.assign(from, from + hidden);
              }
              CHECK(same_bits(got, want)) << layer.op << " " << direction << " sequence " << b
                                          << " step " << t << " direction " << d;
            }
          }
          for (std::size_t output = 1; output < one.size(); ++output) {
            const auto all = values_of<float>(together[output]);
            const auto last = values_of<float>(one[output]);
            for (std::int64_t d = 0; d < directions; ++d) {
              const auto at = all.begin() + (d * batch + b) * hidden;
              const auto from = last.begin() + d * hidden;
              CHECK(same_bits({at, at + hidden}, {from, from + hidden}))
                  << layer.op << " " << direction << " state " << output << " of " << b;
            }
          }
        }
      }
    }
  });
}

// Weights that are packed for one run, and outputs that nobody asked for.
KVIK_TEST(weights_need_not_be_constant) {
  for (const Layer& layer : kLayers) {
    OneNode node = node_of(layer, "bidirectional");
    const auto inputs = inputs_of(layer, 2, 4, 2, 10, 20, 4);
    const auto expected = node.run(inputs);
    node.constants = {};
    CHECK(same_bits(all_values(node.run(inputs)), all_values(expected))) << layer.op;
    node.outputs = 1;
    CHECK(same_bits(all_values(node.run(inputs)), values_of<float>(expected[0]))) << layer.op;
  }
}

// Weights of 8 bits are near those of 32, and not the same.
KVIK_TEST(low_precision_is_near) {
  for (const Layer& layer : kLayers) {
    OneNode node = node_of(layer, "forward");
    const auto inputs = inputs_of(layer, 1, 6, 2, 64, 96, 5);
    // Of a trained layer's size, about 1 / sqrt(64): larger ones make every error grow step by
    // step.
    for (const std::size_t i : {1, 2}) {
      float* p = inputs[i].tensor.as<float>();
      for (std::int64_t j = 0; j < inputs[i].tensor.elements(); ++j) p[j] *= 0.12f;
    }
    const auto exact = values_of<float>(node.run(inputs)[0]);
    const std::pair<WeightType, float> bounds[] = {
        {WeightType::kBF16, 0.02f}, {WeightType::kI8, 0.03f}, {WeightType::kI4, 0.3f}};
    for (const auto& [type, bound] : bounds) {
      node.weights = type;
      const auto rounded = values_of<float>(node.run(inputs)[0]);
      float worst = 0.0f;
      for (std::size_t i = 0; i < exact.size(); ++i) {
        worst = std::max(worst, std::fabs(exact[i] - rounded[i]));
      }
      CHECK(worst > 0.0f && worst < bound)
          << layer.op << " " << kvik::weight_type_name(type) << ": " << worst;
    }
  }
}

KVIK_TEST(what_makes_no_sense_is_refused) {
  const Layer lstm{"LSTM", 4};
  const auto refused = [&](const char* what, ErrorCode code, Attributes attributes,
                           const std::function<void(std::vector<Given>&)>& change) {
    OneNode node = node_of(lstm, "forward");
    for (const auto& [key, value] : attributes) node.attributes.insert_or_assign(key, value);
    for (const bool constant : {true, false}) {
      if (!constant) node.constants = {};
      auto inputs = inputs_of(lstm, 1, 3, 2, 5, 4, 6);
      change(inputs);
      std::string message;
      CHECK(code_of(node, inputs, &message) == code) << what << ": " << message;
    }
  };
  const auto as_is = [](std::vector<Given>&) {};
  const auto model = ErrorCode::kInvalidModel, argument = ErrorCode::kInvalidArgument;
  using Strings = std::vector<std::string>;
  using Floats = std::vector<float>;
  refused("direction", model, {{"direction", std::string("sideways")}}, as_is);
  refused("hidden size", model, {{"hidden_size", std::int64_t{5}}}, as_is);
  refused("clip", model, {{"clip", -1.0f}}, as_is);
  refused("activation", model, {{"activations", Strings{"Tanh", "Tanh", "Cosh"}}}, as_is);
  refused("activations", model, {{"activations", Strings{"Tanh"}}}, as_is);
  refused("alpha", model,
          {{"activations", Strings{"Elu", "Tanh", "Tanh"}}, {"activation_alpha", Floats{1, 2}}},
          as_is);
  refused("ScaledTanh", model, {{"activations", Strings{"ScaledTanh", "Tanh", "Tanh"}}}, as_is);
  refused("directions", model, {{"direction", std::string("bidirectional")}}, as_is);
  refused("W", model, {}, [](auto& v) { v[1] = random({1, 15, 5}, 1); });
  refused("rank of W", model, {}, [](auto& v) { v[1] = random({16, 5}, 1); });
  refused("R", model, {}, [](auto& v) { v[2] = random({1, 16, 5}, 1); });
  refused("X", argument, {}, [](auto& v) { v[0] = random({3, 2, 6}, 1); });
  refused("rank of X", argument, {}, [](auto& v) { v[0] = random({3, 10}, 1); });
  refused("B", argument, {}, [](auto& v) { v[3] = random({1, 16}, 1); });
  refused("initial_h", argument, {}, [](auto& v) { v[5] = random({1, 3, 4}, 1); });
  refused("initial_c", argument, {}, [](auto& v) { v[6] = random({2, 2, 4}, 1); });
  refused("P", argument, {}, [](auto& v) { v[7] = random({1, 16}, 1); });
  refused("layout", argument, {{"layout", std::int64_t{1}}}, as_is);
  refused("lengths", argument, {}, [](auto& v) { v[4] = lengths_of({4, 1}); });
  refused("negative length", argument, {}, [](auto& v) { v[4] = lengths_of({1, -1}); });
  refused("lengths' shape", argument, {}, [](auto& v) { v[4] = lengths_of({1, 1, 1}); });
  refused("lengths' type", argument, {}, [](auto& v) { v[4] = ints({2}, {1, 1}); });
  refused("too much", ErrorCode::kOutOfMemory, {}, [](auto& v) {
    v[0] = floats({0, std::int64_t{1} << 58, 5}, {});
    v[5] = Given{};
    v[6] = Given{};
  });
}

namespace {

// A matrix of integers [rows, columns] with scales: as the operator takes it, and as floats.
struct Stored {
  Given values, scale, zero, floats;
};

// `block`: columns that share a scale; 0: one of each row. Zero points where they are asked for.
Stored stored(DType dtype, std::int64_t directions, std::int64_t rows, std::int64_t columns,
              std::int64_t block, bool zeros, std::uint64_t stream) {
  Random random(stream);
  const std::int64_t all = directions * rows;
  const std::int64_t blocks = block == 0 ? 1 : (columns + block - 1) / block;
  const Dims steps = block == 0 ? Dims{all} : Dims{all, blocks};
  const int low = dtype == DType::kI4 ? -8 : -128, range = dtype == DType::kI4 ? 16 : 256;
  const auto integer = [&] { return low + static_cast<int>(random.bits() % range); };
  std::vector<int> q, z(static_cast<std::size_t>(all * blocks), 0);
  std::vector<float> scale, wide;
  for (int& zero : z) zero = zeros ? integer() : 0;
  for (std::size_t i = 0; i < z.size(); ++i) scale.push_back(random.uniform(0.001f, 0.01f));
  for (std::int64_t r = 0; r < all; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      const auto at = static_cast<std::size_t>(r * blocks + (block == 0 ? 0 : c / block));
      q.push_back(integer());
      wide.push_back(static_cast<float>(q.back() - z[at]) * scale[at]);
    }
  }
  // Two of 4 bits a byte, the first one in its lower half; rows of odd length share bytes.
  const auto bytes = [&](const std::vector<int>& from) {
    std::vector<std::uint8_t> out;
    for (std::size_t i = 0; i < from.size(); ++i) {
      if (dtype == DType::kI8) {
        out.push_back(static_cast<std::uint8_t>(from[i]));
      } else if (i % 2 == 0) {
        out.push_back(static_cast<std::uint8_t>(from[i] & 15));
      } else {
        out.back() = static_cast<std::uint8_t>(out.back() | (from[i] & 15) << 4);
      }
    }
    return out;
  };
  const Dims dims{directions, rows, columns};
  return {Given::of(dtype, dims, bytes(q)), floats(steps, scale),
          zeros ? Given::of(dtype, steps, bytes(z)) : Given{}, floats(dims, wide)};
}

}  // namespace

// Small matrices are widened when they are packed, and then the numbers are those of their floats.
KVIK_TEST(integers_are_what_their_floats_are) {
  for (const Layer& layer : kLayers) {
    for (const std::string direction : {"forward", "reverse", "bidirectional"}) {
      for (const DType dtype : {DType::kI8, DType::kI4}) {
        for (const std::int64_t block : {0, 4}) {
          for (const bool zeros : {false, true}) {
            const std::int64_t d = direction == "bidirectional" ? 2 : 1;
            const std::int64_t rows = layer.gates * 9;
            auto inputs = inputs_of(layer, d, 4, 3, 7, 9, 11);
            Stored w = stored(dtype, d, rows, 7, block, zeros, 12);
            Stored r = stored(dtype, d, rows, 9, block, zeros, 13);
            OneNode node = node_of(layer, direction);
            inputs[1] = std::move(w.floats);
            inputs[2] = std::move(r.floats);
            const auto expected = all_values(node.run(inputs));
            inputs[1] = std::move(w.values);
            inputs[2] = std::move(r.values);
            inputs.resize(12);
            inputs[8] = std::move(w.scale);
            inputs[9] = std::move(w.zero);
            inputs[10] = std::move(r.scale);
            inputs[11] = std::move(r.zero);
            node.domain = "kvik";
            node.constants = zeros ? std::vector<std::size_t>{1, 2, 8, 9, 10, 11}
                                   : std::vector<std::size_t>{1, 2, 8, 10};
            for (const char* whose : {"w_", "r_"}) {
              node.attributes[whose + std::string("axis")] = std::int64_t{block == 0 ? 0 : 1};
              node.attributes[whose + std::string("block")] = block;
            }
            CHECK(same_bits(all_values(node.run(inputs)), expected))
                << layer.op << " " << direction << " " << kvik::dtype_name(dtype) << " block "
                << block << (zeros ? ", zero points" : "");
          }
        }
      }
    }
  }
}

KVIK_TEST(scales_that_do_not_fit_are_refused) {
  const Layer lstm{"LSTM", 4};
  OneNode node = node_of(lstm, "bidirectional");
  node.domain = "kvik";
  node.constants = {1, 2, 8};
  const auto message = [&](const Dims& scale, std::int64_t axis, std::int64_t block) {
    auto inputs = inputs_of(lstm, 2, 3, 2, 7, 9, 6);
    Stored w = stored(DType::kI8, 2, 36, 7, 0, false, 12);
    inputs[1] = std::move(w.values);
    inputs.resize(9);
    inputs[8] = random(scale, 3);
    node.attributes["w_axis"] = axis;
    node.attributes["w_block"] = block;
    std::string text;
    CHECK(code_of(node, inputs, &text) == ErrorCode::kInvalidModel) << text;
    return text;
  };
  const std::string few = message({36}, 0, 0);  // of one direction
  CHECK(few.find("the scale has shape [36]; expected [72] for weights of [72, 7]") !=
        std::string::npos)
      << few;
  CHECK(few.find("LSTM node '/node0'") != std::string::npos) << few;
  message({72, 1}, 1, 4);
  message({2, 36, 2}, 1, 4);
  message({72}, 2, 0);
  message({72}, 0, -4);
}

KVIK_TEST(steps_without_elements_take_no_time) {
  const OneNode node{.op = "RNN", .attributes = {{"hidden_size", std::int64_t{0}}}};
  const auto y = node.run(list(floats({std::int64_t{1} << 40, 1, 0}, {}), floats({1, 0, 0}, {}),
                               floats({1, 0, 0}, {})));
  CHECK_EQ(y[0].tensor.elements(), 0);
}

KVIK_TEST(sizes_may_be_zero) {
  for (const Layer& layer : kLayers) {
    for (const std::string direction : {"forward", "reverse"}) {
      const OneNode node = node_of(layer, direction);
      for (const Dims& d :
           {Dims{0, 2, 3, 4}, Dims{2, 0, 3, 4}, Dims{2, 2, 0, 4}, Dims{2, 2, 3, 0}}) {
        const auto inputs = inputs_of(layer, 1, d[0], d[1], d[2], d[3], 7);
        const auto results = node.run(inputs);
        CHECK_EQ(results[0].tensor.dims.str(), (Dims{d[0], 1, d[1], d[3]}).str());
        // No step leaves the state as it was.
        if (d[0] == 0) {
          CHECK(same_bits(values_of<float>(results[1]), values_of<float>({inputs[5].tensor, {}})));
        }
      }
    }
  }
}

int main(int argc, char** argv) {
  return run_all(argc, argv);
}
