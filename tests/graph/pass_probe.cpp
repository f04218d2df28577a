// Optimises ONNX files, compares the results with those of the graph as imported, and says what the
// passes did. For looking at exports, and for tests that make the exports first.
//
//   kvik_pass_probe [--dump] [--infer] [--disable=PASS,...] model.onnx ...
//
// One line a file: "FILE: N -> M nodes, difference D, rows PROVED". Returns 1 if a difference
// exceeds 1e-4 (of random logits of magnitude 1, computed in float32), or a file fails. --infer
// compares every inferred shape and content with what the values are, too.
#include <cstdio>
#include <exception>
#include <string>

#include "graph/evaluate.h"
#include "graph/infer_check.h"
#include "graph/passes/pipeline.h"
#include "graph/passes/prove_rowwise.h"
#include "onnx/importer.h"

namespace {

using namespace kvik;

std::map<std::string, std::int64_t> symbol_sizes(const graph::Graph& graph) {
  std::map<std::string, std::int64_t> sizes;
  const std::int64_t primes[] = {2, 7, 5, 3};
  for (const graph::ValueId id : graph.inputs) {
    for (const graph::Expr& dim : *graph.value(id).shape) {
      if (!dim.constant()) sizes.emplace(dim.str(), primes[sizes.size() % 4]);
    }
  }
  return sizes;
}

bool probe_inference(const std::string& path) {
  const graph::Model model = onnx::import_file(path);
  const auto check = test::check_inference(model.graph, symbol_sizes(model.graph), 2);
  std::printf("%s: %d shapes and %d contents inferred, %zu wrong\n", path.c_str(), check.shapes,
              check.contents, check.wrong.size());
  for (const std::string& wrong : check.wrong) std::printf("  %s\n", wrong.c_str());
  return check.wrong.empty();
}

bool probe(const std::string& path, const graph::PassOptions& options, bool listing) {
  const graph::Model original = onnx::import_file(path);
  graph::Model model = onnx::import_file(path);
  const auto inputs = test::random_inputs(original.graph, symbol_sizes(original.graph), 1);
  const auto before = test::run_graph(original.graph, inputs);
  const auto report = graph::optimize(model.graph, options, test::evaluator());
  if (listing) std::printf("%s\n", graph::dump(model.graph).c_str());
  const auto after = test::run_graph(model.graph, inputs);
  const double difference = test::difference(after, before);
  const auto proof = graph::prove_rowwise(model.graph);
  std::printf("%s: %zu -> %zu nodes in %d rounds, difference %.2g, rows %s\n", path.c_str(),
              report.nodes_before, report.nodes_after, report.rounds, difference,
              proof.rows ? "proved" : proof.reason.c_str());
  for (const auto& entry : report.passes) {
    if (listing && entry.changes > 0)
      std::printf("  %-18s %d\n", entry.pass.c_str(), entry.changes);
  }
  return difference <= 1e-4;
}

}  // namespace

int main(int argc, char** argv) {
  graph::PassOptions options;
  options.assume_limits = true;
  bool listing = false;
  bool infer = false;
  bool good = true;
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    if (argument == "--dump") {
      listing = true;
    } else if (argument == "--infer") {
      infer = true;
    } else if (argument.rfind("--disable=", 0) == 0) {
      std::string names = argument.substr(10) + ",";
      for (std::size_t end; (end = names.find(',')) != std::string::npos; names.erase(0, end + 1)) {
        if (end > 0) options.disabled.insert(names.substr(0, end));
      }
    } else {
      try {
        if (infer) good = probe_inference(argument) && good;
        good = probe(argument, options, listing) && good;
      } catch (const std::exception& error) {
        std::printf("%s: %s\n", argument.c_str(), error.what());
        good = false;
      }
    }
  }
  return good ? 0 : 1;
}
