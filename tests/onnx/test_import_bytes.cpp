// Any bytes as a model: a typed error or a graph that keeps the rules, never a crash.
//
// Every input lies in a heap block of exactly its size, so that a sanitizer sees a read beyond it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>

#include "graph/graph.h"
#include "kvik/error.h"
#include "onnx/importer.h"
#include "sample_models.h"

namespace {

using kvik::Error;
using kvik::ErrorCode;

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

enum class Outcome { kImported, kRefused };

// Imports a copy of the bytes and walks the whole graph. Errors must be of the kinds that bad bytes
// can cause, and say something.
Outcome import_copy(const std::string& bytes, const std::string& what) {
  const auto block = std::make_unique<std::byte[]>(bytes.size());
  std::memcpy(block.get(), bytes.data(), bytes.size());
  try {
    const auto model = kvik::onnx::import_bytes({block.get(), bytes.size()});
    kvik::graph::verify(model.graph);
    expect(!kvik::graph::dump(model.graph).empty(), what + ": the dump is empty");
    return Outcome::kImported;
  } catch (const Error& error) {
    expect(error.code() != ErrorCode::kInternal, what + ": internal error: " + error.what());
    expect(std::strlen(error.what()) > 0, what + ": an error without a message");
    expect(std::strchr(error.what(), '\n') == nullptr, what + ": an error of several lines");
  } catch (const std::exception& error) {
    expect(false, what + ": an untyped exception: " + error.what());
  }
  return Outcome::kRefused;
}

void test_samples() {
  int index = 0;
  for (const std::string& sample : kvik::test::sample_models()) {
    expect(import_copy(sample, "sample") == Outcome::kImported,
           "sample model " + std::to_string(index++) + " must be imported");
  }
}

// Cut anywhere, the model is refused, unless the cut falls between two fields of the outermost
// message and what is left is complete.
void test_cut_at_every_byte() {
  for (const std::string& sample : kvik::test::sample_models()) {
    std::size_t imported = 0;
    for (std::size_t size = 0; size < sample.size(); ++size) {
      const std::string what = "cut to " + std::to_string(size) + " bytes";
      if (import_copy(sample.substr(0, size), what) == Outcome::kImported) ++imported;
    }
    // After the opsets there are only the metadata and the functions to lose.
    expect(imported <= 4, std::to_string(imported) + " cut models were imported");
  }
}

std::string mutate(std::string bytes, std::mt19937_64& random) {
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  const std::size_t edits = 1 + below(4);
  for (std::size_t i = 0; i < edits && !bytes.empty(); ++i) {
    const std::size_t at = below(bytes.size());
    switch (below(6)) {
      case 0: bytes[at] = static_cast<char>(random()); break;
      case 1: bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8))); break;
      case 2: bytes.erase(at, 1 + below(8)); break;
      case 3: bytes.insert(at, 1 + below(12), static_cast<char>(random())); break;
      case 4: {  // duplicate a stretch elsewhere
        const std::string piece = bytes.substr(at, 1 + below(64));
        bytes.insert(below(bytes.size()), piece);
        break;
      }
      default: bytes[at] = "\x00\x01\x7f\x80\xff\x0a"[below(6)]; break;
    }
  }
  return bytes;
}

void test_mutations(std::uint64_t seed, int rounds) {
  std::mt19937_64 random(seed);
  int imported = 0;
  const auto samples = kvik::test::sample_models();
  for (int round = 0; round < rounds; ++round) {
    const std::string what = "seed " + std::to_string(seed) + ", round " + std::to_string(round);
    const auto& sample = samples[static_cast<std::size_t>(round) % samples.size()];
    if (import_copy(mutate(sample, random), what) == Outcome::kImported) ++imported;
  }
  // A mutation that is never, or always, accepted would test one path only.
  expect(imported > rounds / 100 && imported < rounds, std::to_string(imported) + " of " +
                                                           std::to_string(rounds) +
                                                           " mutations were imported");
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 20000;
  test_samples();
  test_cut_at_every_byte();
  test_mutations(seed, rounds);
  if (failures == 0) std::puts("all passed");
  return failures == 0 ? 0 : 1;
}
