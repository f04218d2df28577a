// Where the time of a model goes, operator by operator.
//
//   model.start_profile();
//   model.forward(...);                         // one or many calls
//   kvik::Profile profile = model.stop_profile();
//
// Off unless started: then nothing is recorded and no clock is read. While it is on, every operator
// costs two readings of the clock. Numbers do not change.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvik {

// One node of the graph that runs: what it is, and the sum over its calls.
struct OpProfile {
  std::string op;         // "kvik.Linear"
  std::string name;       // as in the file
  std::string shape;      // "768 x 2304", inputs by outputs; empty where the operator has none
  std::string precision;  // of what it multiplies: "int8", "f32"; empty where it multiplies nothing

  std::int64_t calls = 0;
  double seconds = 0;  // threads that wait for one another included
  // What the algorithm must do at least, not what a counter saw. Zero where an operator neither
  // reads weights or cached keys and values nor multiplies matrices.
  double bytes = 0;       // of weights, and of cached keys and values, read
  double operations = 0;  // of matrix products; a multiply-add counts two
};

struct Profile {
  std::int64_t calls = 0;      // of forward() or run() that succeeded
  double seconds = 0;          // in them
  std::vector<OpProfile> ops;  // in the order of the graph; those that were called

  // What the calls took beside their operators: bookkeeping, gathering rows, growing the cache, and
  // what the profiler itself spends on each operator (about 0.1 µs).
  // For a session that several threads run at once, not meaningful.
  double overhead_seconds() const {
    double rest = seconds;
    for (const OpProfile& op : ops) rest -= op.seconds;
    return rest;
  }
};

}  // namespace kvik
