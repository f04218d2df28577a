// The row-wise proof: may this graph be run on a flat batch of token rows, and incrementally?
//
// Input: a canonical, shape-inferred, fused graph that maps token ids [batch, sequence] to an
// output [batch, sequence, features...]. The pass follows the batch and the token axis from the
// token input to the output. If every operator on the way is row-wise, position-dependent or causal
// (see cpp/README.md), it returns the same computation on a flat batch of token rows: every value
// that had a batch or token axis has one leading axis "rows" instead, and the two axes have size 1.
//
// With Mixing::kWhole an attention may also read the tokens that follow: an encoder. Its rows can
// be computed only all together, but still without padding, and each sequence by itself.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "graph/infer/infer.h"

namespace kvik::graph {

// Which tokens of its sequence a row may depend on.
enum class Mixing : std::uint8_t {
  kEarlier,  // itself and earlier ones: each row can be computed once, as it comes
  kWhole,    // any: all rows of a sequence are computed together
  kSource,   // of an attention alone: the tokens of another sequence, the source
};

// One attention of the row graph: node `kvik.RowAttention(q, k, v)` with
//   q [rows, ..., heads, ..., head_dim] etc.: rows outermost, dimensions of size 1 anywhere, so in
//   memory q [rows, heads·head_dim], k [rows, kv_heads·head_dim], v [rows, kv_heads·value_dim],
//   result [rows, heads·value_dim].
// Row r of sequence s at position p first stores its k and v at position p of s's cache, then
// attends to the positions 0..p, or to all of them (where `bias` says so).
struct RowAttention {
  NodeId node =
      kNoNode;  // in RowGraph::graph; its int attribute "layer" is the index of this entry
  int heads = 0;
  int kv_heads = 0;  // query head h uses key/value head h / (heads / kv_heads)
  int head_dim = 0;
  int value_dim = 0;
  float scale = 1.0F;
  float softcap = 0.0F;
  // kWhole: every row attends to all positions of its sequence. kSource: to all of its source,
  // whose keys and values were stored before; the node has no inputs k and v.
  Mixing mixing = Mixing::kEarlier;
  // Added to the score of query position Expr::index(1), key position Expr::index(2), query head
  // Expr::index(0); nothing: nothing is added. A boolean expression: true attends, false hides.
  std::optional<Expr> bias;
  // Keys at positions < p - window + 1 are proved hidden; 0: no window.
  std::int64_t window = 0;
};

// One recurrent layer of the row graph: node `kvik.RowRecurrent(X, W, R, B, -, h, c, P)`, with the
// attributes of the ONNX operator that its attribute "cell" names, and its inputs: X [rows, ...,
// inputs]; h and c [directions · hidden] are the initial states, the same for every sequence, zeros
// where left out. Results [rows, ..., directions · hidden]: the hidden states, and the cell states
// of an LSTM. Row r of sequence s at position p takes the state that s had after p - 1, and leaves
// its own beside it: so a sequence goes on wherever it was cut.
struct RowRecurrent {
  NodeId node =
      kNoNode;  // in RowGraph::graph; its int attribute "layer" is the index of this entry
  std::int64_t width = 0;  // floats of a state: directions · hidden, twice that for an LSTM
  // Where in RowRun::source_states h and c begin, if they are the source's; -1: they are the
  // inputs.
  std::int64_t source_h = -1;
  std::int64_t source_c = -1;
  bool keeps_states = true;  // false: its sequences are always given whole
};

struct RowGraph {
  Graph graph;
  ValueId tokens = kNoValue;     // int64 [rows]: the token ids
  ValueId positions = kNoValue;  // int64 [rows]: each row's position in its sequence; may be unused
  // int64 [rows]: token_type_ids of an encoder; kNoValue in others.
  ValueId types = kNoValue;
  ValueId output = kNoValue;  // [rows, features...] (dimensions of size 1 may be among them)
  // The output is that of one token of each sequence: of the first or (-1) the last. Rows of others
  // mean nothing. Nothing: it has a row for every token.
  std::optional<std::int64_t> picked;
  // Where each of several outputs ends in a row of `output`, in elements.
  std::vector<std::int64_t> output_ends;
  // kWhole: an attention reads later tokens, or the output is one row of each sequence.
  Mixing mixing = Mixing::kEarlier;
  std::vector<RowAttention> attention;
  std::vector<RowRecurrent> recurrent;
  // Positions must be below this (the shortest table that the graph indexes by position, or the
  // limit up to which a mask was checked); 0: the graph itself has no limit.
  std::int64_t context_limit = 0;
};

struct RowProof {
  std::optional<RowGraph> rows;  // absent: not proved
  std::vector<std::string>
      explanation;     // what was proved, or where the proof stopped; one line each
  std::string reason;  // not proved: one sentence that names the node
};

// A graph of two sequences, (source ids, target ids) -> [batch, target, features...]: what depends
// on the source alone is computed once for each source and kept, and the target is run
// incrementally.
struct EncoderDecoder {
  // Rows of the source (Mixing::kWhole). Their output: what the target's attentions of kSource
  // read, in the order of those, keys [kv_heads · head_dim] and values [kv_heads · value_dim] of
  // each; then the states of `states`. Absent: the source is none of rows.
  std::optional<RowGraph> source;
  std::string reason;  // why it is absent
  RowGraph target;     // rows of the target

  // An initial state of the target's recurrent layers, in the order of RowRun::source_states.
  struct State {
    std::int64_t width = 0;
    std::int64_t column = 0;  // where it begins in a row of the source's output
    std::int64_t token = 0;   // in the row of the first (0) or the last (-1) token
  };
  std::vector<State> states;

  // The same without rows: values of the graph that depend on the source alone, in the same order,
  // keys and values [batch, heads, tokens, dim] or [batch, tokens, heads · dim], states
  // [directions, batch, hidden] or [batch, directions, hidden].
  std::vector<ValueId> values;
  struct Input {
    ValueId id = kNoValue;
    std::optional<Expr> known;  // what the engine supplies; the ids where nothing
  };
  std::vector<Input> inputs;      // of the source
  std::int64_t source_limit = 0;  // tokens that its tables have room for; 0: no limit
};

struct EncoderDecoderProof {
  std::optional<EncoderDecoder> rows;
  std::vector<std::string> explanation;
  std::string reason;
};

// Proves a graph of two sequences. Its inputs are told apart by the symbols of their lengths: the
// target's is that of the output. Of each sequence one input holds the ids; others must be masks
// (any name with "mask": all ones) or position_ids.
EncoderDecoderProof prove_encoder_decoder(const Graph& graph, ValueId output = kNoValue,
                                          const DimLimits& limits = {});

// The input that holds the token ids, as the proof chooses it; kNoValue: none, or no telling.
ValueId token_input(const Graph& graph);

// Never throws for a valid graph: what can't be proved is said in the result.
// `outputs`: the graph outputs to follow, which are joined along their features; none: the first.
// `limits`: bounds on dimensions that the passes before took for granted; the bound on the sequence
// becomes the context limit.
RowProof prove_rowwise(const Graph& graph, std::vector<ValueId> outputs = {},
                       const DimLimits& limits = {}, Mixing mixing = Mixing::kEarlier);

}  // namespace kvik::graph
