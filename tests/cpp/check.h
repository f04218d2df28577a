// A small harness for C++ tests: CHECK macros that say what they saw, and named cases.
//
//   KVIK_TEST(split_range_covers_all) {
//     CHECK_EQ(sum, total) << "workers " << workers;
//   }
//   int main(int argc, char** argv) { return kvik::test::run_all(argc, argv); }
//
// A failed check is reported and the case goes on; run_all returns the number of failed cases (at
// most 100). Arguments choose the cases whose name contains one of them. KVIK_TEST_SEED sets the
// seed of every random input; a failing run prints the one it had.
#pragma once

#include <cstdint>
#include <functional>
#include <sstream>
#include <string>

namespace kvik::test {

// Registers a case; used through KVIK_TEST.
struct Registration {
  Registration(const char* name, void (*body)());
};

int run_all(int argc, char** argv);

// The seed of this run: KVIK_TEST_SEED, or a fixed default, so that runs repeat.
std::uint64_t seed();

// A failed check: collects what is streamed into it, and reports when it goes.
class Failure {
 public:
  Failure(const char* file, int line, std::string what);
  ~Failure();
  template <typename T>
  Failure& operator<<(const T& value) {
    text_ << value;
    return *this;
  }

 private:
  std::ostringstream text_;
};

template <typename T>
std::string show(const T& value) {
  std::ostringstream out;
  out.precision(9);
  if constexpr (requires { out << value; }) {
    out << value;
  } else {  // a range
    out << "[";
    for (const char* separator = ""; const auto& element : value) {
      out << separator << show(element);
      separator = ", ";
    }
    out << "]";
  }
  return out.str();
}

// Runs `body` and returns what() of the exception that it throws, or "" if it throws none.
std::string thrown(const std::function<void()>& body);

// A counter-based generator (SplitMix64): the same numbers on every platform.
class Random {
 public:
  explicit Random(std::uint64_t stream) : state_(seed() + stream * 0x9e3779b97f4a7c15u) {}
  std::uint64_t bits() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // Uniform in [low, high).
  float uniform(float low, float high) {
    const double unit = static_cast<double>(bits() >> 11) * 0x1p-53;
    return static_cast<float>(low + (static_cast<double>(high) - low) * unit);
  }
  // Uniform in [low, high].
  std::int64_t integer(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(high - low + 1));
  }

 private:
  std::uint64_t state_;
};

}  // namespace kvik::test

#define KVIK_TEST(name)                                                     \
  static void name();                                                       \
  static const ::kvik::test::Registration name##_registration(#name, name); \
  static void name()

#define CHECK(condition) \
  if (condition) {       \
  } else                 \
    ::kvik::test::Failure(__FILE__, __LINE__, "expected " #condition)

#define CHECK_EQ(a, b)                                                                            \
  if ((a) == (b)) {                                                                               \
  } else                                                                                          \
    ::kvik::test::Failure(__FILE__, __LINE__,                                                     \
                          "expected " #a " == " #b ", found " + ::kvik::test::show(a) + " and " + \
                              ::kvik::test::show(b))
