// Runs ONNX models through kvik::Session, many in one process, for tests that are written in
// Python.
//
//   kvik_run_probe plain|optimized LIST
//
// LIST is a text file of path prefixes, one a line. For each prefix, PREFIX.onnx is run on the
// tensors in PREFIX.in and PREFIX.out is written: a line "ok" followed by the results, or a line
// "error CODE: message". A tensor is a line "NAME DTYPE DIM DIM ..." followed by its raw bytes,
// little-endian; 4-bit elements are packed.
//
// Unlike the Python package it passes on every element type, those that numpy lacks among them.
#include <cstdint>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/checked.h"
#include "kvik/session.h"

namespace {

using kvik::DType;
using kvik::Error;
using kvik::ErrorCode;

struct NamedTensor {
  std::string name;
  DType dtype = DType::kUndefined;
  std::vector<std::int64_t> dims;
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
  for (std::string line; std::getline(file, line);) {
    std::istringstream header(line);
    NamedTensor t;
    std::string dtype;
    header >> t.name >> dtype;
    t.dtype = dtype_named(dtype);
    for (std::int64_t dim = 0; header >> dim;) t.dims.push_back(dim);
    const std::int64_t elements = kvik::checked_elements(t.dims).value();
    const std::int64_t bytes = kvik::checked_bytes(elements, t.dtype).value();
    t.storage = kvik::AlignedBuffer(static_cast<std::size_t>(bytes));
    file.read(t.storage.as<char>(), bytes);
    tensors.push_back(std::move(t));
  }
  return tensors;
}

void write_tensor(std::ostream& out, const std::string& name, const kvik::OwnedTensor& tensor) {
  out << name << ' ' << kvik::dtype_name(tensor.dtype);
  for (std::int64_t dim : tensor.dims) out << ' ' << dim;
  out << '\n';
  out.write(tensor.as<char>(), static_cast<std::streamsize>(tensor.bytes()));
}

void run_case(const std::string& prefix, bool optimize, std::ostream& out) {
  kvik::SessionOptions options;
  options.threads = 2;
  options.optimize = optimize;
  const kvik::Session session = kvik::Session::load(prefix + ".onnx", options);
  const std::vector<NamedTensor> given = read_tensors(prefix + ".in");
  std::vector<kvik::Feed> feeds;
  for (const NamedTensor& t : given) feeds.push_back({t.name, {t.dtype, t.dims, t.storage.data()}});
  const std::vector<kvik::OwnedTensor> results = session.run(feeds);
  out << "ok\n";
  for (std::size_t i = 0; i < results.size(); ++i) {
    write_tensor(out, session.outputs()[i].name, results[i]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc == 3 ? argv[1] : "";
  if (mode != "plain" && mode != "optimized") {
    std::cerr << "usage: kvik_run_probe plain|optimized LIST\n";
    return 2;
  }
  std::ifstream list(argv[2]);
  for (std::string prefix; std::getline(list, prefix);) {
    std::ostringstream out;
    try {
      run_case(prefix, mode == "optimized", out);
    } catch (const Error& error) {
      out.str("");
      out << "error " << kvik::error_code_name(error.code()) << ": " << error.what() << '\n';
    }
    std::ofstream(prefix + ".out", std::ios::binary) << out.str();
  }
  return 0;
}
