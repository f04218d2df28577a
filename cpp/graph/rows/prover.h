// The machinery of the row-wise proof: what is known of a value, and how rules build the row graph.
//
// A value of the source graph becomes a *row value* when each of its elements belongs to one batch
// entry and one token. Its layout says what each axis is made of: the batch, the token axis, and
// features. In the row graph it is a tensor [rows, f_0, f_1, ...], one dimension per source axis,
// where f_a is the product of axis a's feature atoms (1 for a pure batch or token axis). So most
// operators carry over as they are, on axes shifted by one.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "graph/axes.h"
#include "graph/graph.h"
#include "graph/infer/infer.h"
#include "graph/passes/prove_rowwise.h"

namespace kvik::graph {

inline constexpr int kBatchRole = 0;
inline constexpr int kTokenRole = 1;
inline constexpr int kFeatureRole = 2;

// Why the proof stops at a value. Thrown by rules, caught by the prover; never leaves it.
struct ProofStop {
  std::string reason;
};

struct RowValue {
  ValueId id = kNoValue;  // in the row graph
  Layout layout;          // one entry per axis of the source value
  bool rows = true;       // false: the same for every row (a weight), no leading rows dimension
};

class Prover {
 public:
  // `source` must be inferred; `contents` as infer() returned them.
  // No `batch`: the graph has none, or one of size 1.
  Prover(const Graph& source, const Contents& contents, std::optional<Expr> batch, Expr token,
         Mixing mixing);

  const Graph& source() const { return source_; }
  bool may_read_later() const { return mixing_ == Mixing::kWhole; }
  RowGraph& result() { return result_; }

  // ---- what is known of the source ---------------------------------------------------------
  const std::vector<Expr>& shape(ValueId id) const;  // stops when unknown
  std::optional<Expr> content(ValueId id) const;
  bool is_batch(const Expr& dim) const { return batch_ && dim == *batch_; }
  bool is_token(const Expr& dim) const { return dim == token_; }
  const Expr& token() const { return token_; }  // the length of the sequence
  bool batched() const { return batch_.has_value(); }
  int axis_attr(const Node& node, std::string_view key, std::int64_t fallback,
                std::size_t rank) const;

  // ---- the other sequence ------------------------------------------------------------------
  // An attention of the target that reads the source.
  struct Cross {
    const Node* node;   // of the source graph: its inputs 1 and 2 are the keys and values
    std::size_t layer;  // in result().attention
  };
  // Which values of the source graph depend on the other sequence: only attentions may read them.
  void set_other(std::vector<bool> values) { other_ = std::move(values); }
  bool is_other(ValueId id) const {
    return id != kNoValue && !other_.empty() && other_[static_cast<std::size_t>(id)];
  }
  std::vector<Cross> crosses;  // in the order of their layers
  // A recurrent layer of the target that begins with states of the source.
  struct Initial {
    const Node* node;   // of the source graph: its inputs 5 and 6 are the states, or one of them is
    std::size_t layer;  // in result().recurrent
  };
  std::vector<Initial> initials;

  // ---- values of the row graph -------------------------------------------------------------
  // The row value of a source value: as a rule made it, a constant, or made from its contents.
  // Stops when there is none.
  RowValue get(ValueId id);
  // The same, where it may also be a weight that is repeated for every text (rows false, with an
  // axis of the batch in its layout): operators that move elements take those along.
  RowValue get_repeated(ValueId id);
  void set(ValueId source_id, RowValue value);
  // Why a value that a rule did not set is none of rows, for whoever needs it.
  void refuse(ValueId source_id, const std::string& reason);
  // The same value without broadcast feature atoms: they are written out.
  RowValue dense(RowValue value);
  // A view of it with other dimensions [rows, dims...].
  ValueId reshaped(ValueId id, const std::vector<std::int64_t>& dims);
  // Adds a node with one output [rows, dims...] (or [dims...] when !rows).
  ValueId emit(std::string_view op, std::string_view domain, std::vector<ValueId> inputs,
               const std::map<std::string, Attribute, std::less<>>& attributes, DType dtype,
               const std::vector<std::int64_t>& dims, bool rows, const std::string& name);
  // Adds a node of the row graph.
  void add(Node node);
  // What the row graph's value holds for token `token` of each sequence alone (-1: the last). From
  // here on no row of another token may meet it.
  ValueId pick(ValueId id, std::int64_t token);
  std::optional<std::int64_t> picked(ValueId id) const;
  // The same rows, of which the reader knows himself which token's they are.
  ValueId unpicked(ValueId id);
  ValueId constant_ints(const std::vector<std::int64_t>& values);
  // The static value `id` with axis moved to the front.
  ValueId axis_to_front(ValueId id, int axis);

  // Positions must stay below `limit`.
  void limit_context(std::int64_t limit, const std::string& why);

  std::vector<std::string> notes;  // lines for the explanation

 private:
  RowValue from_content(ValueId id, const Expr& content);
  RowValue from_constant(ValueId id);

  const Graph& source_;
  const Contents& contents_;
  std::optional<Expr> batch_;
  Expr token_;
  Mixing mixing_;
  RowGraph result_;
  std::map<ValueId, std::int64_t> picked_;       // by the row graph's ids
  std::vector<bool> other_;                      // by source ValueId
  std::vector<std::optional<RowValue>> values_;  // by source ValueId
  std::map<ValueId, std::string> refused_;       // by source ValueId
};

// Keys or values of an Attention node as rows [rows, heads · dim].
struct KeyRows {
  ValueId id = kNoValue;
  int heads = 1;
  int dim = 1;
};
// Inputs 1 and 2 of an Attention node, of as many heads. Stops where they are no rows.
std::pair<KeyRows, KeyRows> key_value_rows(Prover& p, const Node& node);

// Dimensions of the stored tensor behind a layout: the feature size of every axis, broadcast atoms
// left out.
std::vector<std::int64_t> stored_dims(const Layout& layout);
// Whether the axis holds features alone (or nothing).
bool features_only(const Axis& axis);
bool has_role(const Axis& axis, int role);
bool exactly_tokens(const Axis& axis);
Layout feature_layout(const std::vector<Expr>& shape);  // of a constant; stops on symbols
// The layout of an element-wise result; stops where two axes do not agree.
Layout broadcast_layouts(const std::vector<const Layout*>& layouts, const std::string& where);
[[noreturn]] void stop(const std::string& reason);

using RowRule = void (*)(Prover&, const Node&);
struct RowEntry {
  std::string_view domain;
  std::string_view op;
  RowRule rule;
};
std::vector<RowEntry> rowwise_elementwise_rules();
std::vector<RowEntry> rowwise_movement_rules();
std::vector<RowEntry> rowwise_indexing_rules();
std::vector<RowEntry> rowwise_compute_rules();
std::vector<RowEntry> rowwise_attention_rules();
std::vector<RowEntry> rowwise_recurrent_rules();
RowRule find_row_rule(std::string_view domain, std::string_view op);

}  // namespace kvik::graph
