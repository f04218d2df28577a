// Any bytes as a model: a typed error or a graph that keeps the rules, never a crash.
//
// Every input lies in a heap block of exactly its size, so that a sanitizer sees a read beyond it.
#include <cstring>
#include <memory>
#include <string>

#include "cpp/check.h"
#include "graph/graph.h"
#include "kvik/error.h"
#include "onnx/importer.h"
#include "sample_models.h"

namespace {

using kvik::Error;
using kvik::ErrorCode;
using kvik::test::Random;

enum class Outcome { kImported, kRefused };

// Imports a copy of the bytes and walks the whole graph. Errors must be of the kinds that bad bytes
// can cause, and say something.
Outcome import_copy(const std::string& bytes, const std::string& what) {
  const auto block = std::make_unique<std::byte[]>(bytes.size());
  std::memcpy(block.get(), bytes.data(), bytes.size());
  try {
    const auto model = kvik::onnx::import_bytes({block.get(), bytes.size()});
    kvik::graph::verify(model.graph);
    CHECK(!kvik::graph::dump(model.graph).empty()) << what;
    return Outcome::kImported;
  } catch (const Error& error) {
    CHECK(error.code() != ErrorCode::kInternal) << what << ": " << error.what();
    CHECK(std::strlen(error.what()) > 0) << what;
    CHECK(std::strchr(error.what(), '\n') == nullptr) << what << ": " << error.what();
  } catch (const std::exception& error) {
    CHECK(false) << what << ": an untyped exception: " << error.what();
  }
  return Outcome::kRefused;
}

std::string mutate(std::string bytes, Random& random) {
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random.bits() % n); };
  const std::size_t edits = 1 + below(4);
  for (std::size_t i = 0; i < edits && !bytes.empty(); ++i) {
    const std::size_t at = below(bytes.size());
    switch (below(6)) {
      case 0: bytes[at] = static_cast<char>(random.bits()); break;
      case 1: bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8))); break;
      case 2: bytes.erase(at, 1 + below(8)); break;
      case 3: bytes.insert(at, 1 + below(12), static_cast<char>(random.bits())); break;
      case 4: {  // repeat a stretch elsewhere
        const std::string piece = bytes.substr(at, 1 + below(64));
        bytes.insert(below(bytes.size()), piece);
        break;
      }
      default: bytes[at] = "\x00\x01\x7f\x80\xff\x0a"[below(6)]; break;
    }
  }
  return bytes;
}

}  // namespace

KVIK_TEST(samples_are_valid) {
  for (const std::string& sample : kvik::test::sample_models()) {
    CHECK(import_copy(sample, "a sample") == Outcome::kImported);
  }
}

// Cut anywhere, the model is refused, unless the cut falls between two fields of the outermost
// message and what is left is complete.
KVIK_TEST(cut_at_every_byte) {
  for (const std::string& sample : kvik::test::sample_models()) {
    int imported = 0;
    for (std::size_t size = 0; size < sample.size(); ++size) {
      const std::string what = "cut to " + std::to_string(size) + " bytes";
      if (import_copy(sample.substr(0, size), what) == Outcome::kImported) ++imported;
    }
    CHECK(imported <= 4);  // after the opsets, only metadata and functions are left to lose
  }
}

KVIK_TEST(random_mutations) {
  constexpr int kRounds = 20000;
  Random random(1);
  int imported = 0;
  const auto samples = kvik::test::sample_models();
  for (int round = 0; round < kRounds; ++round) {
    const auto& sample = samples[static_cast<std::size_t>(round) % samples.size()];
    const std::string what = "round " + std::to_string(round);
    if (import_copy(mutate(sample, random), what) == Outcome::kImported) ++imported;
  }
  // Were none, or all, accepted, only one path would have been tested.
  CHECK(imported > kRounds / 100) << imported;
  CHECK(imported < kRounds) << imported;
}

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
