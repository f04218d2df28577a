// Reads model files and says what became of them, one block a file:
//
//   ok <microseconds> <peak KiB above the start>
//   error <code> <microseconds> <peak KiB above the start>: <message>
//
// The time is that of the processor, user and system: other programs do not count.
//
// --dump adds the listing of the graph; --constants adds a line for each constant of the main graph
// (name, type, dims, elements in hexadecimal); --supported=Add,com.acme.Foo refuses other
// operators;
// --cut-to=N cuts the file (or that of --cut-file=PATH) to N bytes after it was imported and then
// asks whether it is intact; --from-bytes imports the file's content from memory.
//
// Paths come as arguments or, without any, one a line from stdin, so that one process reads many.
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "kvik/error.h"
#include "onnx/importer.h"

namespace {

// The peak of the resident set of this program. getrusage's ru_maxrss would do, were it not
// inherited from the process that started this one.
long peak_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::stol(line.substr(6));
  }
  std::cerr << "no VmHWM in /proc/self/status\n";
  std::exit(1);
}

long cpu_microseconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1'000'000L + usage.ru_utime.tv_usec +
         usage.ru_stime.tv_usec;
}

struct Settings {
  bool dump = false;
  bool constants = false;
  bool from_bytes = false;
  long cut_to = -1;
  std::string cut_file;             // empty: the model's
  std::set<std::string> supported;  // empty: all
};

void print_constants(const kvik::graph::Graph& graph) {
  for (const auto& value : graph.values) {
    if (!value.constant) continue;
    std::cout << value.name << " " << kvik::dtype_name(value.constant->dtype) << " "
              << value.constant->dims.str() << " ";
    for (std::byte b : value.constant->data) {
      constexpr char kHex[] = "0123456789abcdef";
      std::cout << kHex[std::to_integer<int>(b) >> 4] << kHex[std::to_integer<int>(b) & 15];
    }
    std::cout << "\n";
  }
}

kvik::onnx::ImportOptions options_of(const Settings& settings) {
  kvik::onnx::ImportOptions options;
  if (!settings.supported.empty()) {
    options.supported = [&](std::string_view domain, std::string_view op) {
      const std::string prefix = domain.empty() ? "" : std::string(domain) + ".";
      return settings.supported.count(prefix + std::string(op)) > 0;
    };
  }
  return options;
}

// The bytes are kept by the model, as `owner`. Errors get the path that import_file would give.
kvik::graph::Model import_content(const std::string& path,
                                  const kvik::onnx::ImportOptions& options) {
  std::ifstream file(path, std::ios::binary);
  const auto content = std::make_shared<std::string>(std::istreambuf_iterator<char>(file),
                                                     std::istreambuf_iterator<char>());
  try {
    return kvik::onnx::import_bytes(std::as_bytes(std::span(*content)), options, content);
  } catch (const kvik::Error& error) {
    throw kvik::Error(error.code(), path + ": " + error.what());
  }
}

void probe(const std::string& path, const Settings& settings) {
  const long before = peak_kib();
  const long start = cpu_microseconds();
  const auto cost = [&] {
    return std::to_string(cpu_microseconds() - start) + " " + std::to_string(peak_kib() - before);
  };
  try {
    const kvik::graph::Model model = settings.from_bytes
                                         ? import_content(path, options_of(settings))
                                         : kvik::onnx::import_file(path, options_of(settings));
    const std::string spent = cost();
    kvik::graph::verify(model.graph);
    if (settings.cut_to >= 0) {
      const std::string& file = settings.cut_file.empty() ? path : settings.cut_file;
      if (truncate(file.c_str(), settings.cut_to) != 0) std::cout << "cannot cut the file\n";
      model.check_files();
    }
    std::cout << "ok " << spent << "\n";
    if (settings.dump) std::cout << kvik::graph::dump(model.graph);
    if (settings.constants) print_constants(model.graph);
  } catch (const kvik::Error& error) {
    std::cout << "error " << kvik::error_code_name(error.code()) << " " << cost() << ": "
              << error.what() << "\n";
  }
  std::cout.flush();
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  std::vector<std::string> paths;
  const auto value_of = [](const std::string& argument) {
    return argument.substr(argument.find('=') + 1);
  };
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--dump") {
      settings.dump = true;
    } else if (argument == "--constants") {
      settings.constants = true;
    } else if (argument == "--from-bytes") {
      settings.from_bytes = true;
    } else if (argument.rfind("--cut-file=", 0) == 0) {
      settings.cut_file = value_of(argument);
    } else if (argument.rfind("--cut-to=", 0) == 0) {
      settings.cut_to = std::stol(value_of(argument));
    } else if (argument.rfind("--supported=", 0) == 0) {
      std::istringstream list(value_of(argument));
      for (std::string op; std::getline(list, op, ',');) settings.supported.insert(op);
    } else {
      paths.push_back(argument);
    }
  }
  for (const std::string& path : paths) probe(path, settings);
  if (paths.empty()) {
    for (std::string line; std::getline(std::cin, line);) probe(line, settings);
  }
  return 0;
}
