// Reads model files and says what became of them, one block a file:
//
//   ok <microseconds> <peak KiB above the start>       (followed by the dump with --dump)
//   error <code> <microseconds> <peak KiB above the start>: <message>
//
// Paths come as arguments or, without any, one a line from stdin, so that one process reads many.
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "kvik/error.h"
#include "onnx/importer.h"

namespace {

long peak_kib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

void probe(const std::string& path, bool dump) {
  using Clock = std::chrono::steady_clock;
  const long before = peak_kib();
  const auto start = Clock::now();
  const auto cost = [&] {
    const auto us = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start);
    return std::to_string(us.count()) + " " + std::to_string(peak_kib() - before);
  };
  try {
    const kvik::graph::Model model = kvik::onnx::import_file(path);
    const std::string spent = cost();
    kvik::graph::verify(model.graph);
    std::cout << "ok " << spent << "\n";
    if (dump) std::cout << kvik::graph::dump(model.graph);
  } catch (const kvik::Error& error) {
    std::cout << "error " << kvik::error_code_name(error.code()) << " " << cost() << ": "
              << error.what() << "\n";
  }
  std::cout.flush();
}

}  // namespace

int main(int argc, char** argv) {
  bool dump = false;
  std::vector<std::string> paths;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--dump") dump = true;
    else paths.emplace_back(argv[i]);
  }
  for (const std::string& path : paths) probe(path, dump);
  if (paths.empty()) {
    for (std::string line; std::getline(std::cin, line);) probe(line, dump);
  }
  return 0;
}
