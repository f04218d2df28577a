// Numeric evaluation of expressions: compiled once, run over many index values.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "graph/expr.h"

namespace kvik::graph {

// Evaluates an expression over Expr::index(0 .. kMaxIndices-1), for a run of consecutive values of
// one of them. Immutable once made: several threads may evaluate at once, each with its own
// scratch.
class ExprProgram {
 public:
  static constexpr int kMaxIndices = 8;
  static constexpr int kLanes = 64;  // values computed at a time

  // Throws kvik::Error(kUnsupported) for an expression with symbols or unknowns.
  explicit ExprProgram(const Expr& expr);

  ExprType type() const { return type_; }
  // Bytes of scratch memory that eval needs, 8-aligned.
  std::size_t scratch_bytes() const;

  // out[n] = value at `indices`, with indices[varying] replaced by first, first + 1, ... Booleans
  // come as 0 or 1. A look-up outside its table gives 0. False (and unspecified values): a division
  // by zero or a conversion out of range.
  bool eval(std::span<const std::int64_t> indices, int varying, std::int64_t first, int n,
            void* scratch, std::int64_t* out) const;  // int or bool expressions
  bool eval(std::span<const std::int64_t> indices, int varying, std::int64_t first, int n,
            void* scratch, float* out) const;  // float expressions

 private:
  struct Instruction {
    ExprKind op;
    ExprType type;                        // of the result
    std::int32_t args[3] = {-1, -1, -1};  // registers
    std::int64_t integer = 0;             // constant, index axis, scale
    float real = 0.0F;
    std::shared_ptr<const ConstantTensor> table;
  };
  union Lane {
    std::int64_t i;
    float f;
  };

  std::int32_t compile(const Expr& expr);
  std::int32_t emit(Instruction instruction);
  bool run(std::span<const std::int64_t> indices, int varying, std::int64_t first, int n,
           Lane* registers) const;
  static bool step(const Instruction& instruction, std::span<const std::int64_t> indices,
                   int varying, std::int64_t first, int n, Lane* registers, Lane* out);

  std::vector<Instruction> code_;
  ExprType type_ = ExprType::kInt;
  std::int32_t result_ = -1;
  std::vector<std::pair<const ExprNode*, std::int32_t>> compiled_;
  std::vector<Expr> keep_;  // keeps the nodes in compiled_ alive
};

}  // namespace kvik::graph
