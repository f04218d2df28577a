// Measures the ceilings that a decoder runs into: reading memory, and arithmetic.
//
// Used by `kvik bench`, never by the engine. The loops are as plain as they can be while still
// reaching what the machine gives, so that a share of the ceiling means something.
#pragma once

#include <cstddef>
#include <string>

namespace kvik::bindings {

// Bytes per second at which `threads` threads together read a working set of `bytes` bytes over
// and over, in order, each its own part (as a decode step reads the packed weights): the fastest
// pass within about `seconds`. Throws kvik::Error: kInvalidArgument (bytes < 1, threads < 1,
// seconds not in (0, 60]), kOutOfMemory.
double read_bandwidth(std::size_t bytes, int threads, double seconds);

// Floating-point operations per second (a fused multiply-add counts two) that `threads` threads
// reach together in fp32 with the instructions of `isa` ("reference": what every CPU of the
// architecture has; else a kernel table's name), operands in registers: the fastest round within
// about `seconds`. Throws kvik::Error(kInvalidArgument) when this CPU lacks the ISA.
double fma_peak(const std::string& isa, int threads, double seconds);

// The same for products with bfloat16 weights: of pairs of bfloat16 numbers where the kernels of
// `isa` multiply those, else fma_peak, since they widen the weights to fp32.
double bf16_peak(const std::string& isa, int threads, double seconds);

// The same for products of bytes summed in 32 bits (a multiplication and an addition count two), as
// the integer kernels of `isa` form them.
double dot_peak(const std::string& isa, int threads, double seconds);

}  // namespace kvik::bindings
