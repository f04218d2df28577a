// prove_rowwise on recurrent layers, as exporters write them: which are proved, which refused, why.
#include "graph/builder.h"
#include "graph/passes/prove_rowwise.h"

namespace kvik::test {
namespace {

constexpr std::int64_t kWords = 11;
constexpr std::int64_t kInputs = 6;
constexpr std::int64_t kUnits = 5;

struct Layer {
  std::string op = "LSTM";
  std::int64_t directions = 1;
  bool batch_first = false;
  Attributes attributes = {};
  ValueId lengths = graph::kNoValue;
  ValueId h = graph::kNoValue;
  ValueId c = graph::kNoValue;
};

// ids [b, s] -> x [b, s, kInputs], and what the tests make of it.
struct Recurrent {
  Builder b;
  ValueId ids = b.input("ids", {sym("b"), sym("s")}, DType::kI64);
  ValueId x = b.node("Gather", {b.weight("embedding", Dims{kWords, kInputs}), ids});
  ValueId by_time = b.node("Transpose", {x}, {{"perm", std::vector<std::int64_t>{1, 0, 2}}});
  ValueId batch = dim(0);   // [1]
  ValueId length = dim(1);  // [1]

  ValueId dim(std::int64_t axis) {
    return b.node("Shape", {ids}, {{"start", axis}, {"end", axis + 1}});
  }
  ValueId state_shape() {
    return b.node("Concat", {b.ints({1}), batch, b.ints({kUnits})}, {{"axis", std::int64_t{0}}});
  }
  // A learned state, for every text.
  ValueId learned() {
    return b.node("Expand", {b.weight("first", Dims{1, 1, kUnits}), state_shape()});
  }
  graph::Node& last() { return b.graph.nodes.back(); }
  ValueId output(std::size_t i) {
    const ValueId id = b.graph.add_value("state" + std::to_string(i));
    last().outputs.resize(i + 1, graph::kNoValue);
    last().outputs[i] = id;
    return id;
  }

  // Y, as the operator gives it.
  ValueId layer(ValueId input, const Layer& l = {}) {
    const std::int64_t gates = l.op == "LSTM" ? 4 : l.op == "GRU" ? 3 : 1;
    Attributes attributes = l.attributes;
    attributes["hidden_size"] = kUnits;
    if (l.directions == 2) attributes["direction"] = std::string("bidirectional");
    if (l.batch_first) attributes["layout"] = std::int64_t{1};
    std::vector<ValueId> inputs{input,
                                b.weight("w", Dims{l.directions, gates * kUnits, kInputs}),
                                b.weight("r", Dims{l.directions, gates * kUnits, kUnits}),
                                b.weight("b", Dims{l.directions, 2 * gates * kUnits}),
                                l.lengths,
                                l.h};
    if (l.op == "LSTM") inputs.push_back(l.c);
    return b.node(l.op, inputs, attributes);
  }
  // [b, s, kUnits] of [s, 1, b, kUnits], and [b, s, 2 · kUnits] of [s, 2, b, kUnits].
  ValueId texts(ValueId y) {
    const ValueId moved =
        b.node("Transpose", {y}, {{"perm", std::vector<std::int64_t>{2, 0, 1, 3}}});
    return b.node("Reshape", {moved, b.ints({0, 0, -1})});
  }

  graph::RowProof prove(const std::vector<ValueId>& outputs,
                        graph::Mixing mixing = graph::Mixing::kEarlier) {
    for (const ValueId id : outputs) b.output(id);
    graph::PassOptions options;
    options.assume_limits = true;
    const auto report = graph::optimize(b.graph, options, evaluator());
    return graph::prove_rowwise(b.graph, {b.graph.outputs[0]}, report.limits, mixing);
  }
  graph::RowGraph proves(ValueId output, const std::string& what,
                         graph::Mixing mixing = graph::Mixing::kEarlier) {
    graph::RowProof proof = prove({output}, mixing);
    CHECK(proof.rows.has_value()) << what << ": " << proof.reason;
    return proof.rows ? std::move(*proof.rows) : graph::RowGraph{};
  }
  void refuses(ValueId output, const std::string& reason, const char* what,
               graph::Mixing mixing = graph::Mixing::kEarlier) {
    const graph::RowProof proof = prove({output}, mixing);
    CHECK(!proof.rows.has_value()) << what;
    CHECK(proof.reason.find(reason) != std::string::npos) << what << ": " << proof.reason;
  }
};

KVIK_TEST(each_cell_keeps_its_state) {
  for (const char* op : {"LSTM", "GRU", "RNN"}) {
    for (const bool batch_first : {false, true}) {
      Recurrent m;
      const ValueId y =
          m.layer(batch_first ? m.x : m.by_time, {.op = op, .batch_first = batch_first});
      const ValueId out = batch_first ? m.b.node("Squeeze", {y, m.b.ints({2})}) : m.texts(y);
      const graph::RowGraph rows = m.proves(out, op);
      CHECK_EQ(rows.recurrent.size(), std::size_t{1}) << op;
      CHECK(rows.mixing == graph::Mixing::kEarlier && rows.attention.empty()) << op;
      if (rows.recurrent.empty()) continue;
      CHECK_EQ(rows.recurrent[0].width, op == std::string("LSTM") ? 2 * kUnits : kUnits) << op;
      CHECK(rows.recurrent[0].keeps_states && rows.recurrent[0].source_h == -1) << op;
    }
  }
}

KVIK_TEST(layers_on_each_other) {
  Recurrent m;
  ValueId y = m.x;
  const ValueId widen = m.b.weight("widen", Dims{kUnits, kInputs});
  for (int i = 0; i < 3; ++i) {
    const ValueId steps =
        m.b.node("Transpose", {y}, {{"perm", std::vector<std::int64_t>{1, 0, 2}}});
    y = m.b.node("MatMul", {m.texts(m.layer(steps, {.op = i == 1 ? "GRU" : "LSTM"})), widen});
  }
  const graph::RowGraph rows = m.proves(y, "three layers");
  CHECK_EQ(rows.recurrent.size(), std::size_t{3});
}

KVIK_TEST(initial_states_of_every_spelling) {
  const auto zeros = [](Recurrent& m) {
    const float zero = 0.0F;
    return m.b.node("ConstantOfShape", {m.state_shape()},
                    {{"value", graph::ConstantTensor::from_floats({&zero, 1}, Dims{1})}});
  };
  {
    Recurrent m;
    const ValueId h = zeros(m), c = zeros(m);
    const auto rows = m.proves(m.texts(m.layer(m.by_time, {.h = h, .c = c})), "ConstantOfShape");
    CHECK(graph::dump(rows.graph).find("Expand") == std::string::npos) << "nothing is made";
  }
  {
    Recurrent m;
    const ValueId h = m.b.node("Expand", {m.b.scalar(0.0F), m.state_shape()});
    m.proves(m.texts(m.layer(m.by_time, {.op = "GRU", .h = h})), "Expand of zero");
  }
  {
    Recurrent m;
    const ValueId h = m.b.node("Expand", {m.b.scalar(0.25F), m.state_shape()});
    m.proves(m.texts(m.layer(m.by_time, {.op = "GRU", .h = h})), "Expand of a number");
  }
  {
    Recurrent m;
    const ValueId h = m.learned();
    m.proves(m.texts(m.layer(m.by_time, {.h = h})), "a learned state");
  }
  {
    Recurrent m;
    const ValueId repeats =
        m.b.node("Concat", {m.b.ints({1}), m.batch, m.b.ints({1})}, {{"axis", std::int64_t{0}}});
    const ValueId both = m.b.node("Tile", {m.b.weight("both", Dims{2, 1, kUnits}), repeats});
    const ValueId h = m.b.node("Slice", {both, m.b.ints({1}), m.b.ints({2}), m.b.ints({0})});
    m.proves(m.texts(m.layer(m.by_time, {.op = "RNN", .h = h})), "a part of a tiled one");
  }
  {
    Recurrent m;
    const ValueId flat = m.b.node("Squeeze", {m.learned(), m.b.ints({0})});
    const ValueId h = m.b.node("Unsqueeze", {flat, m.b.ints({1})});  // [batch, 1, units]
    m.proves(m.b.node("Squeeze",
                      {m.layer(m.x, {.op = "GRU", .batch_first = true, .h = h}), m.b.ints({2})}),
             "the batch first");
  }
}

KVIK_TEST(lengths_that_are_the_whole_sequence) {
  const auto lengths = [](Recurrent& m, ValueId each) {
    return m.b.node("Cast", {m.b.node("Expand", {each, m.batch})}, {{"to", std::int64_t{6}}});
  };
  {
    Recurrent m;
    const ValueId all = lengths(m, m.length);
    m.proves(m.texts(m.layer(m.by_time, {.lengths = all})), "as long as the sequence");
  }
  {
    Recurrent m;
    const ValueId all = lengths(m, m.b.node("Sub", {m.length, m.b.ints({1})}));
    m.refuses(m.texts(m.layer(m.by_time, {.lengths = all})), "sequence_lens", "one less");
  }
}

KVIK_TEST(what_reads_later_tokens_is_refused) {
  {
    Recurrent m;
    m.refuses(m.texts(m.layer(m.by_time, {.attributes = {{"direction", std::string("reverse")}}})),
              "is reverse: its state comes from later tokens", "reverse");
  }
  {
    Recurrent m;
    m.refuses(m.texts(m.layer(m.by_time, {.directions = 2})),
              "is bidirectional: its state comes from later tokens", "bidirectional");
  }
  {
    Recurrent m;
    const ValueId y = m.texts(m.layer(m.by_time, {.op = "GRU"}));
    const ValueId back = m.b.node("ReduceMean", {y, m.b.ints({1})});
    m.refuses(m.b.node("Add", {y, back}), "ReduceMean", "the mean over the tokens");
  }
  {
    Recurrent m;
    const ValueId y = m.texts(m.layer(m.by_time, {.op = "GRU"}));
    const ValueId top = m.b.graph.nodes.size() > 0 ? y : y;
    for (graph::Node& node : m.b.graph.nodes) {
      if (!node.is("GRU")) continue;
      const ValueId last = m.b.graph.add_value("last");
      node.outputs.push_back(last);
      const ValueId texts =
          m.b.node("Transpose", {last}, {{"perm", std::vector<std::int64_t>{1, 0, 2}}});
      m.refuses(m.b.node("Add", {top, texts}), "gives its last state", "the last state");
      break;
    }
  }
}

KVIK_TEST(what_is_no_recurrence_along_the_tokens_is_refused) {
  {
    Recurrent m;  // x instead of its transpose: a bug of many models
    m.refuses(m.b.node("Squeeze", {m.layer(m.x), m.b.ints({1})}), "runs along the batch",
              "along the batch");
  }
  {
    Recurrent m;
    const ValueId h = m.b.node("Unsqueeze", {m.b.node("ReduceMean",
                                                      {
                                                          m.x,
                                                          m.b.ints({1}),
                                                      },
                                                      {{"keepdims", std::int64_t{0}}}),
                                             m.b.ints({0})});
    const ValueId cut = m.b.node("Slice", {h, m.b.ints({0}), m.b.ints({kUnits}), m.b.ints({2})});
    m.refuses(m.texts(m.layer(m.by_time, {.op = "GRU", .h = cut})), "ReduceMean",
              "a state that is made of all tokens");
  }
  {
    Recurrent m;
    const ValueId h = m.b.input("h", {Expr(1), sym("b"), Expr(kUnits)});
    m.refuses(m.texts(m.layer(m.by_time, {.op = "GRU", .h = h})), "has no meaning",
              "a state of the caller's");
  }
}

// As a file may have them: nothing is read of what is not there.
KVIK_TEST(layers_without_their_weights_are_refused) {
  for (const std::string op : {"LSTM", "GRU", "RNN"}) {
    for (const std::size_t left : {std::size_t{1}, std::size_t{2}}) {
      Recurrent m;
      const ValueId y = m.layer(m.by_time, {.op = op});
      m.last().inputs.resize(left);
      m.refuses(m.texts(y), left == 1 ? "lacks its input W" : "lacks its input R", "too few");
    }
    for (const Dims& dims : {Dims{}, Dims{kUnits}, Dims{kUnits, kUnits}, Dims{1, 1, 1, kUnits}}) {
      Recurrent m;
      const ValueId y = m.layer(m.by_time, {.op = op});
      const ValueId r = m.b.weight("odd", dims);
      m.last().inputs[2] = r;
      m.refuses(m.texts(y), "has an input R that is not of rank 3", "another rank");
    }
  }
}

KVIK_TEST(whole_sequences_in_every_direction) {
  for (const std::int64_t directions : {1, 2}) {
    Recurrent m;
    Layer l{.directions = directions};
    if (directions == 1) l.attributes["direction"] = std::string("reverse");
    const auto rows = m.proves(m.texts(m.layer(m.by_time, l)), "an encoder", graph::Mixing::kWhole);
    CHECK(rows.mixing == graph::Mixing::kWhole);
    CHECK(!rows.recurrent.empty() && !rows.recurrent[0].keeps_states);
  }
}

KVIK_TEST(the_last_state_is_one_tokens_row) {
  for (const bool reverse : {false, true}) {
    Recurrent m;
    m.layer(m.by_time,
            {.attributes = {{"direction", std::string(reverse ? "reverse" : "forward")}}});
    const ValueId h = m.output(1), c = m.output(2);
    const ValueId sum = m.b.node("Add", {h, c});
    const auto rows =
        m.proves(m.b.node("Squeeze", {sum, m.b.ints({0})}), "Y_h and Y_c", graph::Mixing::kWhole);
    CHECK(rows.picked && *rows.picked == (reverse ? 0 : -1));
  }
  Recurrent m;
  m.layer(m.by_time, {.op = "GRU", .directions = 2});
  m.refuses(m.texts(m.output(1)), "last states of both directions", "of two tokens",
            graph::Mixing::kWhole);
}

// source [b, s], target [b, t] -> what a recurrent decoder makes of them.
struct Pair {
  Builder b;
  ValueId source = b.input("source_ids", {sym("b"), sym("s")}, DType::kI64);
  ValueId target = b.input("target_ids", {sym("b"), sym("t")}, DType::kI64);
  ValueId batch = b.node("Shape", {target}, {{"end", std::int64_t{1}}});

  ValueId steps(ValueId ids, const char* table) {
    return b.node("Transpose", {b.node("Gather", {b.weight(table, Dims{kWords, kInputs}), ids})},
                  {{"perm", std::vector<std::int64_t>{1, 0, 2}}});
  }
  // Y, and Y_h and Y_c where they are asked for.
  ValueId layer(const std::string& op, ValueId x, std::vector<ValueId> states,
                std::vector<ValueId>* last = nullptr, const std::string& direction = "forward") {
    const std::int64_t gates = op == "LSTM" ? 4 : 3;
    std::vector<ValueId> inputs{x, b.weight("w", Dims{1, gates * kUnits, kInputs}),
                                b.weight("r", Dims{1, gates * kUnits, kUnits}),
                                b.weight("bias", Dims{1, 2 * gates * kUnits}), graph::kNoValue};
    inputs.insert(inputs.end(), states.begin(), states.end());
    const ValueId y = b.node(op, inputs, {{"hidden_size", kUnits}, {"direction", direction}});
    for (int i = 0; last != nullptr && i < (op == "LSTM" ? 2 : 1); ++i) {
      last->push_back(b.graph.add_value(op + std::to_string(b.graph.values.size())));
      b.graph.nodes.back().outputs.push_back(last->back());
    }
    return y;
  }
  ValueId texts(ValueId y) {  // [b, t, kUnits]
    return b.node(
        "Squeeze",
        {b.node("Transpose", {y}, {{"perm", std::vector<std::int64_t>{2, 0, 1, 3}}}), b.ints({2})});
  }
  graph::EncoderDecoderProof prove(ValueId output) {
    b.output(output);
    graph::PassOptions options;
    options.assume_limits = true;
    const auto report = graph::optimize(b.graph, options, evaluator());
    return graph::prove_encoder_decoder(b.graph, graph::kNoValue, report.limits);
  }
};

KVIK_TEST(a_target_begins_with_states_of_the_source) {
  for (const std::string direction : {"forward", "reverse"}) {
    Pair m;
    std::vector<ValueId> last;
    m.layer("LSTM", m.steps(m.source, "from"), {}, &last, direction);
    const auto proof =
        m.prove(m.texts(m.layer("LSTM", m.steps(m.target, "to"), {last[0], last[1]})));
    CHECK(proof.rows.has_value()) << direction << ": " << proof.reason;
    if (!proof.rows) continue;
    const graph::EncoderDecoder& rows = *proof.rows;
    CHECK(rows.source.has_value()) << rows.reason;
    CHECK_EQ(rows.states.size(), std::size_t{2});
    const graph::RowRecurrent& layer = rows.target.recurrent.at(0);
    CHECK(layer.source_h == 0 && layer.source_c == kUnits) << "h and c side by side";
    for (const auto& state : rows.states) {
      CHECK_EQ(state.width, kUnits);
      CHECK_EQ(state.token, std::int64_t{direction == "forward" ? -1 : 0});
    }
  }
}

KVIK_TEST(one_part_of_the_state_is_the_sources) {
  Pair m;
  std::vector<ValueId> last;
  m.layer("GRU", m.steps(m.source, "from"), {}, &last);
  const ValueId shape =
      m.b.node("Concat", {m.b.ints({1}), m.batch, m.b.ints({kUnits})}, {{"axis", std::int64_t{0}}});
  const ValueId zeros = m.b.node("Expand", {m.b.scalar(0.0F), shape});
  const auto proof = m.prove(m.texts(m.layer("LSTM", m.steps(m.target, "to"), {last[0], zeros})));
  CHECK(proof.rows.has_value()) << proof.reason;
  if (!proof.rows) return;
  const graph::RowRecurrent& layer = proof.rows->target.recurrent.at(0);
  CHECK(layer.source_h == 0 && layer.source_c == -1);
}

// The source is none of rows where its states are those of two tokens: it runs as it stands.
KVIK_TEST(a_source_of_any_kind) {
  Pair m;
  std::vector<ValueId> last;
  const ValueId x = m.steps(m.source, "from");
  m.layer("GRU", x, {}, &last);
  m.layer("GRU", x, {}, &last, "reverse");
  const ValueId both = m.b.node("Add", {last[0], last[1]});
  const auto proof = m.prove(m.texts(m.layer("GRU", m.steps(m.target, "to"), {both})));
  CHECK(proof.rows.has_value()) << proof.reason;
  if (!proof.rows) return;
  CHECK(!proof.rows->source.has_value());
  CHECK(proof.rows->reason.find("two tokens") != std::string::npos) << proof.rows->reason;
  CHECK_EQ(proof.rows->values.size(), std::size_t{1});
  CHECK_EQ(proof.rows->inputs.size(), std::size_t{1});
}

KVIK_TEST(a_state_of_both_sequences_is_refused) {
  Pair m;
  std::vector<ValueId> last;
  m.layer("GRU", m.steps(m.source, "from"), {}, &last);
  const ValueId x = m.steps(m.target, "to");
  const ValueId mean =
      m.b.node("Unsqueeze", {m.b.node("ReduceMean", {m.layer("GRU", x, {}), m.b.ints({0, 1})},
                                      {{"keepdims", std::int64_t{0}}}),
                             m.b.ints({0})});
  const auto proof = m.prove(m.texts(m.layer("GRU", x, {m.b.node("Add", {last[0], mean})})));
  CHECK(!proof.rows.has_value());
  CHECK(proof.reason.find("ReduceMean") != std::string::npos) << proof.reason;
}

}  // namespace
}  // namespace kvik::test

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
