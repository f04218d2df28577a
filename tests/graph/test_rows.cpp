// prove_rowwise on small graphs by hand: each rule, and near misses that it must refuse.
#include "graph/builder.h"
#include "graph/passes/prove_rowwise.h"

namespace kvik::test {
namespace {

constexpr std::int64_t kVocab = 11;
constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kDim = 4;
constexpr std::int64_t kWidth = kHeads * kDim;
constexpr std::int64_t kTable = 16;  // positions of the stored tables
constexpr float kLow = -1e9F;

// ids [b, s] -> x [b, s, kWidth], and what the tests make of it.
struct Model {
  Builder b;
  ValueId ids = b.input("ids", {sym("b"), sym("s")}, DType::kI64);
  ValueId x = b.node("Gather", {b.weight("embedding", Dims{kVocab, kWidth}), ids});
  ValueId batch = dim(0);   // [1]
  ValueId length = dim(1);  // [1]

  ValueId dim(std::int64_t axis) {
    return b.node("Shape", {ids}, {{"start", axis}, {"end", axis + 1}});
  }
  ValueId whole(std::int64_t value) {
    return b.graph.add_constant("whole" + std::to_string(value),
                                graph::ConstantTensor::from_ints({{value}}, Dims{}));
  }
  ValueId concat(std::vector<ValueId> parts) {
    return b.node("Concat", std::move(parts), {{"axis", std::int64_t{0}}});
  }
  ValueId reshape(ValueId v, std::vector<ValueId> shape) {
    return b.node("Reshape", {v, concat(std::move(shape))});
  }
  ValueId transpose(ValueId v, std::vector<std::int64_t> perm) {
    return b.node("Transpose", {v}, {{"perm", std::move(perm)}});
  }
  ValueId positions() {  // [s]
    return b.node("Range", {whole(0), b.node("Squeeze", {length}), whole(1)});
  }
  ValueId heads() {  // [b, kHeads, s, kDim]
    return transpose(reshape(x, {batch, length, b.ints({kHeads, kDim})}), {0, 2, 1, 3});
  }
  // [s, s]: key OP query
  ValueId compare(const char* op) {
    const ValueId at = positions();
    return b.node(op, {at, b.node("Unsqueeze", {at, b.ints({1})})});
  }
  ValueId hidden_unless(const char* op) {
    return b.node("Where", {compare(op), b.scalar(0.0F), b.scalar(kLow)});
  }
  ValueId attend(ValueId mask) {
    const ValueId h = heads();
    return b.node("Attention", {h, h, h, mask});
  }

  graph::RowProof prove(ValueId output, graph::Mixing mixing = graph::Mixing::kEarlier) {
    return prove(std::vector<ValueId>{output}, mixing);
  }
  graph::RowProof prove(const std::vector<ValueId>& outputs, graph::Mixing mixing) {
    for (const ValueId id : outputs) b.output(id);
    graph::PassOptions options;
    options.assume_limits = true;
    const auto report = graph::optimize(b.graph, options, evaluator());
    return graph::prove_rowwise(b.graph, b.graph.outputs, report.limits, mixing);
  }
  void proves(ValueId output, const char* what, std::int64_t limit = 0) {
    const graph::RowProof proof = prove(output);
    CHECK(proof.rows.has_value()) << what << ": " << proof.reason;
    CHECK_EQ(proof.rows ? proof.rows->context_limit : limit, limit) << what;
  }
  void refuses(ValueId output, const std::string& reason, const char* what) {
    const graph::RowProof proof = prove(output);
    CHECK(!proof.rows.has_value()) << what;
    CHECK(proof.reason.find(reason) != std::string::npos) << what << ": " << proof.reason;
  }
  ValueId indices(std::vector<std::int64_t> values, Dims dims) {
    return b.graph.add_constant("at", graph::ConstantTensor::from_ints(values, dims));
  }
};

KVIK_TEST(gather_nd_picks_features) {
  {
    Model m;
    const ValueId front =
        m.transpose(m.reshape(m.x, {m.batch, m.length, m.b.ints({kHeads, kDim})}), {2, 0, 1, 3});
    const ValueId picked = m.b.node("GatherND", {front, m.indices({-1}, Dims{1, 1})});
    m.proves(m.b.node("Squeeze", {picked, m.b.ints({0})}), "one axis");
  }
  {
    Model m;
    const ValueId front =
        m.transpose(m.reshape(m.x, {m.batch, m.length, m.b.ints({kHeads, kDim})}), {2, 3, 0, 1});
    const ValueId picked =
        m.b.node("GatherND", {front, m.indices({0, -1, 1, 2, 1, 0}, Dims{3, 2})});
    m.proves(m.transpose(picked, {1, 2, 0}), "two axes");
  }
  {
    Model m;
    const ValueId table = m.b.weight("table", Dims{kVocab, 3});
    const ValueId at = m.b.node("Unsqueeze", {m.ids, m.b.ints({2})});
    m.proves(m.b.node("GatherND", {table, at}), "a table indexed per token");
  }
}

KVIK_TEST(gather_nd_of_tokens_is_refused) {
  {
    Model m;
    const ValueId front = m.transpose(m.x, {1, 0, 2});
    const ValueId last = m.b.node("GatherND", {front, m.indices({-1}, Dims{1})});
    m.refuses(m.b.node("Add", {m.x, m.b.node("Unsqueeze", {last, m.b.ints({1})})}), "GatherND",
              "the last token");
  }
  {
    Model m;
    const ValueId front = m.transpose(m.x, {2, 1, 0});
    const ValueId first = m.b.node("GatherND", {front, m.indices({0, 0, 1, 0}, Dims{2, 2})});
    m.refuses(
        m.b.node("Add",
                 {m.x, m.b.node("Slice", {first, m.b.ints({0}), m.b.ints({1}), m.b.ints({0})})}),
        "GatherND", "two features of the first token");
  }
}

KVIK_TEST(gather_elements_by_position) {
  const auto build = [](Model& m, ValueId at, std::int64_t repeats) {
    const ValueId table = m.b.weight("table", Dims{kTable, kWidth});
    const ValueId index = m.b.node("Unsqueeze", {at, m.b.ints({1})});
    const ValueId wide = m.b.node("Tile", {index, m.b.ints({1, repeats})});
    return m.b.node(
        "Add",
        {repeats == kWidth ? m.x : m.reshape(m.x, {m.batch, m.length, m.b.ints({-1, repeats})}),
         m.b.node("GatherElements", {table, wide}, {{"axis", std::int64_t{0}}})});
  };
  {
    Model m;
    m.proves(build(m, m.positions(), kWidth), "positions", kTable);
  }
  {
    Model m;
    const ValueId last = m.b.node("Sub", {m.b.node("Squeeze", {m.length}), m.whole(1)});
    m.refuses(build(m, m.b.node("Sub", {last, m.positions()}), kWidth), "length of the whole",
              "from the end");
  }
  {
    Model m;
    const ValueId wide = m.b.node(
        "Expand", {m.b.node("Unsqueeze", {m.positions(), m.b.ints({1})}), m.b.ints({1, kWidth})});
    const ValueId at = m.b.node("Add", {wide, m.indices({0, 1, 0, 1, 0, 1, 0, 1}, Dims{kWidth})});
    const ValueId table = m.b.weight("table", Dims{kTable, kWidth});
    m.refuses(m.b.node("Add", {m.x, m.b.node("GatherElements", {table, at})}), "more than one axis",
              "indices that differ by feature");
  }
  {
    Model m;
    const ValueId at = m.b.node("Sub", {m.b.node("Squeeze", {m.length}), m.positions()});
    const ValueId square = m.b.node("Expand", {at, m.concat({m.length, m.length})});
    const ValueId table = m.b.weight("table", Dims{kTable, kWidth});
    const ValueId rows = m.b.node("Slice", {table, m.b.ints({0}), m.length, m.b.ints({0})});
    const ValueId cut = m.b.node("Slice", {rows, m.b.ints({0}), m.length, m.b.ints({1})});
    const ValueId sum =
        m.b.node("ReduceSum", {m.b.node("GatherElements", {cut, square}), m.b.ints({1})});
    m.refuses(m.b.node("Add", {m.x, sum}), "", "a square of tokens");
  }
}

// [kHeads, 1, s]: slope of the head times the key's position.
ValueId alibi(Model& m) {
  const ValueId slopes = m.b.weight("slopes", Dims{kHeads, 1, 1});
  return m.b.node("Mul", {slopes, m.b.node("Cast", {m.positions()}, {{"to", std::int64_t{1}}})});
}

// A mask [b * kHeads, 1, s] unfolded to [b, kHeads, 1, s], and the causal one.
ValueId folded(Model& m, ValueId bias) {
  const ValueId unfolded = m.reshape(bias, {m.batch, m.b.ints({kHeads, 1}), m.length});
  return m.attend(m.b.node("Add", {unfolded, m.hidden_unless("LessOrEqual")}));
}

KVIK_TEST(a_bias_folded_into_the_batch) {
  {
    Model m;
    const ValueId repeats = m.concat({m.batch, m.b.ints({1, 1})});
    m.proves(folded(m, m.b.node("Tile", {alibi(m), repeats})), "batch outermost", 2048);
  }
  {
    Model m;
    const ValueId wide =
        m.b.node("Expand", {alibi(m), m.concat({m.b.ints({1}), m.batch, m.length})});
    const ValueId both = m.b.node("Mul", {m.batch, m.b.ints({kHeads})});
    m.refuses(folded(m, m.reshape(wide, {both, m.b.ints({1}), m.length})), "mask",
              "heads outermost: by the place in the batch");
  }
  {
    Model m;
    const ValueId flat = m.reshape(
        m.heads(), {m.b.node("Mul", {m.batch, m.b.ints({kHeads})}), m.length, m.b.ints({kDim})});
    m.proves(m.reshape(flat, {m.batch, m.b.ints({kHeads}), m.length, m.b.ints({kDim})}),
             "folded and unfolded");
  }
  {
    Model m;
    const ValueId flat = m.reshape(
        m.heads(), {m.b.node("Mul", {m.batch, m.b.ints({kHeads})}), m.length, m.b.ints({kDim})});
    m.refuses(m.reshape(flat, {m.b.ints({kHeads}), m.batch, m.length, m.b.ints({kDim})}), "Reshape",
              "unfolded the other way round");
  }
}

KVIK_TEST(a_minimum_that_a_limit_decides) {
  const auto clipped = [](Model& m, std::int64_t size) {
    const ValueId least = m.b.node("Min", {m.length, m.b.ints({size})});
    return m.reshape(m.x, {m.batch, least, m.b.ints({kWidth})});
  };
  const auto positions = [](Model& m) {
    return m.b.node("Slice", {m.b.weight("table", Dims{kTable, kWidth}), m.b.ints({0}), m.length,
                              m.b.ints({0})});
  };
  {
    Model m;
    const ValueId y = clipped(m, kTable);
    m.proves(m.b.node("Add", {y, positions(m)}), "of the table's size", kTable);
  }
  {
    Model m;
    const ValueId y = clipped(m, kTable - 1);
    m.refuses(m.b.node("Add", {y, positions(m)}), "Reshape", "of a smaller size");
  }
  {
    Model m;
    m.refuses(clipped(m, kTable), "Reshape", "without a table");
  }
}

// A bias [kHeads, 1, s] cut from the end of a table, whose value is f(distance from the last).
ValueId from_the_end(Model& m, float (*f)(float)) {
  std::vector<float> values;
  for (int head = 0; head < kHeads; ++head) {
    for (int i = 0; i < kTable; ++i) {
      values.push_back(-0.25F * static_cast<float>(head + 1) *
                       f(static_cast<float>(kTable - 1 - i)));
    }
  }
  const ValueId table = m.b.graph.add_constant(
      "bias", graph::ConstantTensor::from_floats(values, Dims{kHeads, 1, kTable}));
  const ValueId start =
      m.b.node("Max", {m.b.node("Sub", {m.b.ints({kTable}), m.length}), m.b.ints({0})});
  return m.b.node("Slice", {table, start, m.b.ints({INT64_MAX}), m.b.ints({2})});
}

KVIK_TEST(a_bias_that_counts_from_the_end) {
  {
    Model m;
    const ValueId bias = from_the_end(m, [](float d) { return d; });
    m.proves(m.attend(m.b.node("Add", {bias, m.hidden_unless("LessOrEqual")})), "a line", kTable);
  }
  {
    Model m;
    const ValueId bias = from_the_end(m, [](float d) { return d * d; });
    m.refuses(m.attend(m.b.node("Add", {bias, m.hidden_unless("LessOrEqual")})),
              "length of the whole sequence", "a parabola");
  }
  {
    Model m;
    const ValueId bias = from_the_end(m, [](float d) { return d == 0.0F ? 0.0F : 1.0F; });
    m.refuses(m.attend(m.b.node("Add", {bias, m.hidden_unless("LessOrEqual")})),
              "length of the whole sequence", "the last key apart");
  }
  {
    Model m;
    const ValueId bias = from_the_end(m, [](float d) { return d; });
    const ValueId by_length =
        m.b.node("Mul", {bias, m.b.node("Cast", {m.length}, {{"to", std::int64_t{1}}})});
    m.refuses(m.attend(m.b.node("Add", {by_length, m.hidden_unless("LessOrEqual")})),
              "length of the whole sequence", "a slope that grows with the length");
  }
  {
    Model m;
    const ValueId bias = from_the_end(m, [](float d) { return d; });
    const ValueId visible = m.b.node("Where", {m.compare("Less"), bias, m.b.scalar(0.0F)});
    m.refuses(m.attend(m.b.node("Add", {visible, m.hidden_unless("LessOrEqual")})),
              "length of the whole sequence", "not added to every key");
  }
  {
    Model m;
    const ValueId bias = from_the_end(m, [](float d) { return 0x1p20F * d; });
    m.refuses(m.attend(m.b.node("Add", {bias, m.hidden_unless("LessOrEqual")})),
              "weigh more than what hides", "a slope steeper than the mask is deep");
  }
  {
    Model m;
    m.refuses(m.attend(from_the_end(m, [](float d) { return d; })), "not causal", "nothing hidden");
  }
}

KVIK_TEST(a_row_that_sees_no_key_averages_over_all) {
  {
    Model m;
    m.refuses(m.attend(m.hidden_unless("Less")), "hides every position", "strictly below");
  }
  {
    Model m;
    const ValueId low =
        m.b.node("Where", {m.compare("LessOrEqual"), m.b.scalar(-9999.0F), m.b.scalar(-10001.0F)});
    m.refuses(m.attend(low), "hides every position", "hidden beside almost hidden");
  }
  {
    Model m;
    m.proves(m.attend(m.hidden_unless("LessOrEqual")), "causal");
  }
}

// ---- rows that read their whole sequence
// ---------------------------------------------------------

constexpr auto kWhole = graph::Mixing::kWhole;

ValueId token(Model& m, ValueId x, std::int64_t index) {
  return m.b.node("Gather", {x, m.whole(index)}, {{"axis", std::int64_t{1}}});
}

KVIK_TEST(a_whole_sequence_is_read_only_where_that_is_allowed) {
  Model m;
  const graph::RowProof proof = m.prove(m.attend(graph::kNoValue), kWhole);
  CHECK(proof.rows.has_value()) << proof.reason;
  CHECK(proof.rows->mixing == kWhole);
  CHECK(proof.rows->attention.at(0).mixing == kWhole);
  CHECK(!proof.rows->attention.at(0).bias && !proof.rows->picked);
  Model other;
  other.refuses(other.attend(graph::kNoValue), "not causal", "the same, incrementally");
  Model causal;
  const auto rows = causal.prove(causal.attend(causal.hidden_unless("LessOrEqual")), kWhole).rows;
  CHECK(rows && rows->mixing == graph::Mixing::kEarlier);
}

KVIK_TEST(a_mask_of_padding_is_all_ones) {
  Model m;
  const ValueId mask = m.b.input("attention_mask", {sym("b"), sym("s")}, DType::kI64);
  const ValueId wide = m.b.node("Unsqueeze", {mask, m.b.ints({1, 2})});  // [b, 1, 1, s]
  const ValueId real = m.b.node("Cast", {wide}, {{"to", std::int64_t{1}}});
  const ValueId hidden = m.b.node("Sub", {m.b.scalar(1.0F), real});
  const graph::RowProof proof =
      m.prove(m.attend(m.b.node("Mul", {hidden, m.b.scalar(kLow)})), kWhole);
  CHECK(proof.rows.has_value()) << proof.reason;
  CHECK(!proof.rows->attention.at(0).bias);
}

KVIK_TEST(a_bias_of_the_positions_may_reach_later_keys) {
  const auto distance = [](Model& m) {
    const ValueId at = m.positions();
    const ValueId apart = m.b.node("Sub", {at, m.b.node("Unsqueeze", {at, m.b.ints({1})})});
    return m.b.node("Cast", {m.b.node("Abs", {apart})}, {{"to", std::int64_t{1}}});
  };
  {
    Model m;
    const auto proof = m.prove(m.attend(m.b.node("Neg", {distance(m)})), kWhole);
    CHECK(proof.rows.has_value()) << proof.reason;
    CHECK(proof.rows->attention.at(0).bias.has_value());
  }
  {
    Model m;
    const ValueId length = m.b.node("Cast", {m.length}, {{"to", std::int64_t{1}}});
    const auto proof = m.prove(m.attend(m.b.node("Div", {distance(m), length})), kWhole);
    CHECK(!proof.rows.has_value());
    CHECK(proof.reason.find("length of the whole sequence") != std::string::npos) << proof.reason;
  }
}

KVIK_TEST(one_token_of_each_sequence) {
  const auto head = [](Model& m, ValueId x) {
    return m.b.node("MatMul", {x, m.b.weight("head", Dims{kWidth, 3})});
  };
  for (const std::int64_t index : {0, -1}) {
    Model m;
    const auto proof = m.prove(head(m, token(m, m.x, index)), kWhole);
    CHECK(proof.rows.has_value()) << proof.reason;
    CHECK(proof.rows->picked == index);
    CHECK_EQ(proof.rows->output_ends.at(0), 3);
    Model incremental;
    incremental.refuses(head(incremental, token(incremental, incremental.x, index)),
                        "picks from the token or batch axis", "incrementally");
  }
  {
    Model m;
    const auto proof = m.prove(head(m, token(m, m.x, 1)), kWhole);
    CHECK(!proof.rows.has_value()) << "the second token, which a text may not have";
    CHECK(proof.reason.find("picks from the token or batch axis") != std::string::npos)
        << proof.reason;
  }
  {
    // x[:, 0] + x: every token's row would need the first token's.
    Model m;
    const ValueId first = m.b.node("Unsqueeze", {token(m, m.x, 0), m.b.ints({1})});
    const auto proof = m.prove(m.b.node("Add", {first, m.x}), kWhole);
    CHECK(!proof.rows.has_value());
    CHECK(proof.reason.find("one token of each sequence") != std::string::npos) << proof.reason;
  }
  {
    Model m;
    const auto proof = m.prove(m.b.node("Add", {token(m, m.x, 0), token(m, m.x, -1)}), kWhole);
    CHECK(!proof.rows.has_value());
    CHECK(proof.reason.find("two tokens of each sequence") != std::string::npos) << proof.reason;
  }
}

KVIK_TEST(one_token_is_not_repeated_for_all) {
  // Rows of the first token as a sequence again: each row would have to be the first's.
  const auto repeated = [](Model& m) {
    const ValueId first = m.b.node("Unsqueeze", {token(m, m.x, 0), m.b.ints({1})});
    return m.b.node("Expand", {first, m.concat({m.batch, m.length, m.b.ints({kWidth})})});
  };
  const std::string reason = "repeats one token";
  {
    Model m;
    const auto proof = m.prove(repeated(m), kWhole);
    CHECK(!proof.rows.has_value());
    CHECK(proof.reason.find(reason) != std::string::npos) << proof.reason;
  }
  {
    Model m;
    m.x = repeated(m);
    const auto proof = m.prove(m.attend(graph::kNoValue), kWhole);
    CHECK(!proof.rows.has_value());
    CHECK(proof.reason.find(reason) != std::string::npos) << proof.reason;
  }
}

KVIK_TEST(picks_by_gather_elements) {
  const auto pick = [](Model& m, ValueId at, std::vector<ValueId> dims) {
    const ValueId spread = m.b.node("Expand", {at, m.concat(std::move(dims))});
    const ValueId one = m.b.node("GatherElements", {m.x, spread}, {{"axis", std::int64_t{1}}});
    return m.b.node("Squeeze", {one, m.b.ints({1})});
  };
  {
    // The last token by the length of a mask of ones.
    Model m;
    const ValueId mask = m.b.input("attention_mask", {sym("b"), sym("s")}, DType::kI64);
    const ValueId length = m.b.node("ReduceSum", {mask, m.b.ints({1})});  // [b, 1]
    const ValueId last = m.b.node("Sub", {length, m.whole(1)});
    const ValueId wide = m.b.node("Unsqueeze", {last, m.b.ints({2})});
    const auto proof = m.prove(pick(m, wide, {m.batch, m.b.ints({1}), m.b.ints({kWidth})}), kWhole);
    CHECK(proof.rows.has_value()) << proof.reason;
    CHECK(proof.rows->picked == -1);
  }
  {
    Model m;
    const ValueId at = m.indices({0, 0}, Dims{1, 1, 1, 2});
    const ValueId one = m.b.node("GatherElements", {m.x, at}, {{"axis", std::int64_t{1}}});
    const auto proof = m.prove(one, kWhole);
    CHECK(!proof.rows.has_value()) << "indices of another rank";
  }
}

KVIK_TEST(types_are_rows_beside_the_tokens) {
  const auto typed = [](Model& m, std::vector<Expr> dims) {
    const ValueId types = m.b.input("token_type_ids", std::move(dims), DType::kI64);
    return m.b.node("Gather", {m.b.weight("kinds", Dims{2, kWidth}), types});
  };
  Model m;
  const auto proof = m.prove(m.b.node("Add", {m.x, typed(m, {sym("b"), sym("s")})}), kWhole);
  CHECK(proof.rows.has_value()) << proof.reason;
  CHECK(proof.rows->types != graph::kNoValue);
  Model flat;
  flat.b.graph.value(flat.ids).shape = std::vector<Expr>{sym("s")};
  const ValueId x = flat.b.node("Add", {flat.x, typed(flat, {Expr(1), sym("t")})});
  CHECK(!flat.prove(x, kWhole).rows.has_value()) << "of another rank than the ids";
}

KVIK_TEST(a_bias_must_leave_a_key_to_see) {
  Model m;
  const ValueId apart =
      m.b.node("Where", {m.compare("Equal"), m.b.scalar(-1e9F), m.b.scalar(0.0F)});
  const auto proof = m.prove(m.attend(apart), kWhole);
  CHECK(!proof.rows.has_value()) << "a text of one token sees nothing";
}

KVIK_TEST(several_outputs_lie_side_by_side) {
  Model m;
  const ValueId wide = m.b.node("MatMul", {m.x, m.b.weight("wide", Dims{kWidth, 5})});
  const auto proof = m.prove({wide, m.x}, kWhole);
  CHECK(proof.rows.has_value()) << proof.reason;
  CHECK((proof.rows->output_ends == std::vector<std::int64_t>{5, 5 + kWidth}));
  Model other;
  const auto mixed = other.prove({other.x, token(other, other.x, 0)}, kWhole);
  CHECK(!mixed.rows.has_value()) << "a row for every token beside one for each sequence";
}

}  // namespace
}  // namespace kvik::test

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
