// Runs ONNX models through the importer and the graph executor, many in one process, for tests that
// are written in Python.
//
//   kvik_run_probe LIST
//
// LIST is a text file of path prefixes, one a line. For each prefix, PREFIX.onnx is imported and run
// on the tensors in PREFIX.in, and PREFIX.out is written: a line "ok" followed by the results, or a
// line "error CODE: message". A tensor is a line "NAME DTYPE DIM DIM ..." followed by its raw bytes,
// little-endian; 4-bit elements are packed. Inputs are matched by name.
#include <algorithm>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/checked.h"
#include "kvik/error.h"
#include "onnx/importer.h"
#include "runtime/executor.h"

namespace {

using kvik::DType;
using kvik::Error;
using kvik::ErrorCode;

struct NamedTensor {
  std::string name;
  kvik::Tensor tensor;
  kvik::AlignedBuffer storage;
};

DType dtype_named(const std::string& name) {
  for (int i = 1; i <= static_cast<int>(DType::kString); ++i) {
    if (name == kvik::dtype_name(static_cast<DType>(i))) return static_cast<DType>(i);
  }
  throw Error(ErrorCode::kUnsupported, "element type " + name);
}

std::vector<NamedTensor> read_tensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<NamedTensor> tensors;
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream header(line);
    NamedTensor t;
    std::string dtype;
    header >> t.name >> dtype;
    t.tensor.dtype = dtype_named(dtype);
    for (std::int64_t dim = 0; header >> dim;) t.tensor.dims.push_back(dim);
    const auto bytes = kvik::checked_bytes(t.tensor.dims.elements(), t.tensor.dtype).value();
    t.storage = kvik::AlignedBuffer(static_cast<std::size_t>(bytes));
    file.read(t.storage.as<char>(), bytes);
    t.tensor.data = t.storage.data();
    tensors.push_back(std::move(t));
  }
  return tensors;
}

void write_tensor(std::ostream& out, const std::string& name, const kvik::Tensor& tensor) {
  out << name << ' ' << kvik::dtype_name(tensor.dtype);
  for (std::int64_t dim : tensor.dims) out << ' ' << dim;
  out << '\n';
  out.write(tensor.as<char>(), *kvik::checked_bytes(tensor.elements(), tensor.dtype));
}

void run_case(const std::string& prefix, kvik::ThreadPool& pool, std::ostream& out) {
  kvik::onnx::ImportOptions import_options;
  const kvik::graph::Model model = kvik::onnx::import_file(prefix + ".onnx", import_options);
  const kvik::graph::Graph& graph = model.graph;
  kvik::ops::WeightCache weights;
  const kvik::runtime::Engine engine{kvik::kernels::active_table(), pool, weights};
  kvik::runtime::ExecutorOptions options;
  options.max_bytes = std::int64_t{1} << 30;
  const kvik::runtime::GraphExecutor executor(graph, engine, options);

  const std::vector<NamedTensor> given = read_tensors(prefix + ".in");
  std::vector<kvik::Tensor> inputs;
  for (kvik::graph::ValueId id : graph.inputs) {
    const auto it = std::find_if(given.begin(), given.end(), [&](const NamedTensor& t) {
      return t.name == graph.value(id).name;
    });
    if (it == given.end()) {
      throw Error(ErrorCode::kInvalidArgument, "no input '" + graph.value(id).name + "' was given");
    }
    inputs.push_back(it->tensor);
  }
  const auto results = executor.run(inputs);
  out << "ok\n";
  for (std::size_t i = 0; i < results.size(); ++i) {
    write_tensor(out, graph.value(graph.outputs[i]).name, results[i].tensor);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: kvik_run_probe LIST\n";
    return 2;
  }
  kvik::ThreadPool pool(2);
  std::ifstream list(argv[1]);
  for (std::string prefix; std::getline(list, prefix);) {
    std::ostringstream out;
    try {
      run_case(prefix, pool, out);
    } catch (const Error& error) {
      out.str("");
      out << "error " << kvik::error_code_name(error.code()) << ": " << error.what() << '\n';
    }
    std::ofstream(prefix + ".out", std::ios::binary) << out.str();
  }
  return 0;
}
