#include "cpp/check.h"

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

namespace kvik::test {
namespace {

struct Case {
  const char* name;
  void (*body)();
};

std::vector<Case>& cases() {
  static std::vector<Case> list;
  return list;
}

int failures_in_case = 0;

constexpr int kReportedPerCase = 20;  // a broken kernel fails everywhere: the first few tell

bool chosen(const char* name, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::string(name).find(argv[i]) != std::string::npos) return true;
  }
  return argc <= 1;
}

}  // namespace

Registration::Registration(const char* name, void (*body)()) {
  cases().push_back({name, body});
}

std::uint64_t seed() {
  static const std::uint64_t value = [] {
    const char* text = std::getenv("KVIK_TEST_SEED");
    return text ? std::strtoull(text, nullptr, 0) : 20240601u;
  }();
  return value;
}

Failure::Failure(const char* file, int line, std::string what) {
  text_ << file << ":" << line << ": " << what << " ";
}

Failure::~Failure() {
  if (++failures_in_case <= kReportedPerCase) std::fprintf(stderr, "%s\n", text_.str().c_str());
}

std::string thrown(const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

int run_all(int argc, char** argv) {
  int failed = 0, ran = 0;
  for (const Case& c : cases()) {
    if (!chosen(c.name, argc, argv)) continue;
    failures_in_case = 0;
    try {
      c.body();
    } catch (const std::exception& error) {
      Failure(c.name, 0, std::string("unexpected exception: ") + error.what());
    }
    ++ran;
    failed += failures_in_case != 0;
    std::printf("%-4s %s\n", failures_in_case ? "FAIL" : "ok", c.name);
    std::fflush(stdout);
    if (failures_in_case) {
      std::fprintf(stderr, "%s: %d failed checks, KVIK_TEST_SEED=%llu\n", c.name, failures_in_case,
                   static_cast<unsigned long long>(seed()));
    }
  }
  if (ran == 0) std::fprintf(stderr, "no case has such a name\n");
  return ran == 0 ? 1 : failed < 100 ? failed : 100;
}

}  // namespace kvik::test
