// Einsum: a plain sum over the named axes, products of the inputs in double. Exporters write MatMul
// where speed matters.
#include <array>
#include <map>

#include "ops/families.h"
#include "ops/support.h"

namespace kvik::ops {

namespace {

// "ij, jk -> ik" taken apart; '.' stands for one ellipsis.
struct Equation {
  std::vector<std::string> inputs;
  std::string output;
  bool explicit_output = false;
};

Equation parse_equation(const std::string& text) {
  Equation e;
  std::string compact;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == ' ') continue;
    if (text.compare(i, 3, "...") == 0) {
      compact += '.';
      i += 2;
      continue;
    }
    compact += text[i];
  }
  const std::size_t arrow = compact.find("->");
  e.explicit_output = arrow != std::string::npos;
  if (e.explicit_output) e.output = compact.substr(arrow + 2);
  std::string term;
  for (char c : compact.substr(0, arrow) + ",") {
    if (c == ',') {
      e.inputs.push_back(std::exchange(term, ""));
    } else {
      term += c;
    }
  }
  const auto valid = [](const std::string& s) {
    return std::count(s.begin(), s.end(), '.') <= 1 && std::all_of(s.begin(), s.end(), [](char c) {
             return c == '.' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
           });
  };
  if (!std::all_of(e.inputs.begin(), e.inputs.end(), valid) || !valid(e.output)) {
    fail(ErrorCode::kInvalidModel, "the equation '" + text + "' is not an einsum equation");
  }
  return e;
}

// Axes are labels: letters, and 0 .. 7 for the dimensions of the ellipsis, counted from its end.
using Labels = std::vector<int>;

Labels labels_of(const std::string& term, int ellipsis_rank) {
  Labels labels;
  for (char c : term) {
    if (c != '.') {
      labels.push_back(c);
    } else {
      for (int i = ellipsis_rank - 1; i >= 0; --i) labels.push_back(i);
    }
  }
  return labels;
}

// The loop over all labels: result axes first, then the summed ones.
struct Loop {
  Dims result;
  std::vector<std::int64_t> sizes;
  std::vector<std::vector<std::int64_t>> strides;  // by input, by loop axis
  std::size_t result_axes = 0;
};

Loop plan_loop(OpContext& context, const Equation& e) {
  const int count = context.input_count();
  check(static_cast<std::size_t>(count) == e.inputs.size(), [&] {
    return "the equation names " + std::to_string(e.inputs.size()) + " inputs; the node has " +
           std::to_string(count);
  });
  std::map<int, std::int64_t> sizes;
  std::map<int, int> uses;
  std::vector<Labels> inputs;
  int widest = 0;
  for (int i = 0; i < count; ++i) {
    const std::string& term = e.inputs[static_cast<std::size_t>(i)];
    const Dims& dims = context.input(i).dims;
    const bool dots = term.find('.') != std::string::npos;
    const int named = static_cast<int>(term.size()) - (dots ? 1 : 0);
    check(dots ? dims.rank >= named : dims.rank == named, [&] {
      return "input " + std::to_string(i) + " has shape " + dims.str() + ", which does not fit '" +
             term + "'";
    });
    const int ellipsis = dims.rank - named;
    widest = std::max(widest, dots ? ellipsis : 0);
    inputs.push_back(labels_of(term, ellipsis));
    for (int axis = 0; axis < dims.rank; ++axis) {
      const int label = inputs.back()[static_cast<std::size_t>(axis)];
      ++uses[label];
      auto [it, fresh] = sizes.emplace(label, dims[axis]);
      check(fresh || it->second == dims[axis] || it->second == 1 || dims[axis] == 1, [&] {
        return "input " + std::to_string(i) + " has shape " + dims.str() +
               ", which does not agree with another input";
      });
      if (it->second == 1) it->second = dims[axis];
    }
  }
  Labels output;
  if (e.explicit_output) {
    output = labels_of(e.output, widest);
  } else {  // the ellipsis, then every letter that occurs once, in order
    for (int i = widest - 1; i >= 0; --i) output.push_back(i);
    for (const auto& [label, n] : uses) {
      if (label >= 'A' && n == 1) output.push_back(label);
    }
  }
  Loop loop;
  Labels order;
  for (int label : output) {
    check(sizes.count(label) != 0 && std::count(output.begin(), output.end(), label) == 1, [] {
      return std::string("the equation's result names an axis twice or one that no input has");
    });
    loop.result.push_back(sizes[label]);
    order.push_back(label);
  }
  loop.result_axes = order.size();
  for (const auto& [label, size] : sizes) {
    if (std::find(output.begin(), output.end(), label) == output.end()) order.push_back(label);
  }
  for (int label : order) loop.sizes.push_back(sizes[label]);
  for (int i = 0; i < count; ++i) {
    const Dims& dims = context.input(i).dims;
    const Dims strides = strides_of(dims);
    std::vector<std::int64_t> by_axis;
    for (int label : order) {
      std::int64_t stride = 0;  // a label that an input names twice walks its diagonal
      for (int axis = 0; axis < dims.rank; ++axis) {
        if (inputs[static_cast<std::size_t>(i)][static_cast<std::size_t>(axis)] == label &&
            dims[axis] != 1) {
          stride += strides[axis];
        }
      }
      by_axis.push_back(stride);
    }
    loop.strides.push_back(std::move(by_axis));
  }
  return loop;
}

constexpr std::size_t kMaxInputs = 8;

template <typename T>
void run_loop(OpContext& context, const Loop& loop, T* out) {
  using A = std::conditional_t<kIsFloat<T>, double, std::uint64_t>;
  const std::size_t inputs = loop.strides.size(), axes = loop.sizes.size();
  std::int64_t summed = 1;
  for (std::size_t a = loop.result_axes; a < axes; ++a) {
    if (!checked_mul(summed, loop.sizes[a], &summed)) {
      fail(ErrorCode::kOutOfMemory, "the sum has too many terms");
    }
  }
  std::array<const T*, kMaxInputs> data{};
  for (std::size_t i = 0; i < inputs; ++i) data[i] = context.input(static_cast<int>(i)).as<T>();
  parallel_for(context, loop.result.elements(), summed, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int64_t> index(axes);
    for (std::int64_t o = begin; o < end; ++o) {
      std::array<std::int64_t, kMaxInputs> offset{};
      std::int64_t rest = o;
      for (std::size_t a = loop.result_axes; a-- > 0;) {
        for (std::size_t i = 0; i < inputs; ++i) {
          offset[i] += rest % loop.sizes[a] * loop.strides[i][a];
        }
        rest /= loop.sizes[a];
      }
      std::fill(index.begin(), index.end(), 0);
      A total = 0;
      for (std::int64_t term = 0; term < summed; ++term) {
        A product = 1;
        for (std::size_t i = 0; i < inputs; ++i)
          product *= static_cast<A>(widen(data[i][offset[i]]));
        total += product;
        for (std::size_t a = axes; a-- > loop.result_axes;) {
          for (std::size_t i = 0; i < inputs; ++i) offset[i] += loop.strides[i][a];
          if (++index[a] < loop.sizes[a]) break;
          for (std::size_t i = 0; i < inputs; ++i) offset[i] -= loop.strides[i][a] * loop.sizes[a];
          index[a] = 0;
        }
      }
      out[o] = narrow<T>(static_cast<Compute<T>>(total));
    }
  });
}

}  // namespace

void register_einsum(Registry& r) {
  r.add("Einsum", [](const NodeInfo& info) {
    const Equation equation = parse_equation(info.node.string_attr("equation", ""));
    if (equation.inputs.size() > kMaxInputs) {
      fail(ErrorCode::kUnsupported, "Einsum with " + std::to_string(equation.inputs.size()) +
                                        " inputs; Kvik takes up to " + std::to_string(kMaxInputs));
    }
    return kernel_of([equation](OpContext& context) {
      const Tensor& first = context.input(0);
      const Loop loop = plan_loop(context, equation);
      for (int i = 1; i < context.input_count(); ++i) {
        check_same_dtype(first, context.input(i), "the first input", "another");
      }
      Tensor& y = context.output(0, first.dtype, loop.result);
      visit_numeric(first.dtype, [&]<typename T>() { run_loop<T>(context, loop, y.as<T>()); });
    });
  });
}

}  // namespace kvik::ops
