// prove_encoder_decoder on small graphs by hand: what it proves, and near misses that it must
// refuse.
#include "graph/builder.h"
#include "graph/passes/prove_rowwise.h"

namespace kvik::test {
namespace {

constexpr std::int64_t kVocab = 11;
constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kDim = 4;
constexpr std::int64_t kWidth = kHeads * kDim;
constexpr float kLow = -1e9F;

// One of the two sequences: ids [b, length] -> x [b, length, kWidth].
struct Side {
  Builder& b;
  ValueId ids;
  ValueId x;

  Side(Builder& builder, const std::string& name, const Expr& batch, const Expr& length)
      : b(builder),
        ids(b.input(name + "_ids", {batch, length}, DType::kI64)),
        x(b.node("Gather", {b.weight(name, Dims{kVocab, kWidth}), ids})) {}

  ValueId dim(std::int64_t axis) const {  // [1]
    return b.node("Shape", {ids}, {{"start", axis}, {"end", axis + 1}});
  }
  ValueId heads(ValueId value) const {  // [b, length, kWidth] -> [b, kHeads, length, kDim]
    const ValueId shape =
        b.node("Concat", {dim(0), dim(1), b.ints({kHeads, kDim})}, {{"axis", std::int64_t{0}}});
    return b.node("Transpose", {b.node("Reshape", {value, shape})},
                  {{"perm", std::vector<std::int64_t>{0, 2, 1, 3}}});
  }
  ValueId heads() const { return heads(x); }
  ValueId rows(ValueId heads) const {  // the way back
    const ValueId shape =
        b.node("Concat", {dim(0), dim(1), b.ints({kWidth})}, {{"axis", std::int64_t{0}}});
    const std::vector<std::int64_t> perm{0, 2, 1, 3};
    return b.node("Reshape", {b.node("Transpose", {heads}, {{"perm", perm}}), shape});
  }
  ValueId positions() const {  // [length]
    const auto whole = [&](std::int64_t value) {
      return b.graph.add_constant("whole" + std::to_string(value),
                                  graph::ConstantTensor::from_ints({{value}}, Dims{}));
    };
    return b.node("Range", {whole(0), b.node("Squeeze", {dim(1)}), whole(1)});
  }
};

// Key position OP query position: [query length, key length].
ValueId compare(const Side& queries, const Side& keys, const char* op) {
  Builder& b = queries.b;
  return b.node(op, {keys.positions(), b.node("Unsqueeze", {queries.positions(), b.ints({1})})});
}

struct Model {
  Builder b;
  Side source;
  Side target;

  explicit Model(const char* target_batch = "b")
      : source(b, "source", sym("b"), sym("t")), target(b, "target", sym(target_batch), sym("s")) {}

  // Of the target: rows [b, s, kWidth].
  ValueId attend(ValueId k, ValueId v, ValueId mask = graph::kNoValue) {
    return target.rows(b.node("Attention", {target.heads(), k, v, mask}));
  }
  ValueId causal() {  // of the target to itself
    const ValueId h = target.heads();
    const ValueId mask =
        b.node("Where", {compare(target, target, "LessOrEqual"), b.scalar(0.0F), b.scalar(kLow)});
    return attend(h, h, mask);
  }
  // Of the target to the source: `memory` [b, t, kWidth].
  ValueId cross(ValueId memory, ValueId mask = graph::kNoValue) {
    const ValueId keys = source.heads(memory);
    return attend(keys, keys, mask);
  }
  ValueId cross() { return cross(source.x); }
  ValueId whole_source() {  // attention of the source to itself
    const ValueId h = source.heads();
    return source.rows(b.node("Attention", {h, h, h}));
  }
  // Hides what `mask` [b, t] has as 0: [b, 1, 1, t].
  ValueId hiding(ValueId mask) {
    const ValueId real = b.node("Equal", {mask, b.ints({1})});
    return b.node("Unsqueeze",
                  {b.node("Where", {real, b.scalar(0.0F), b.scalar(kLow)}), b.ints({1, 2})});
  }

  graph::EncoderDecoderProof prove(ValueId output) {
    b.output(output);
    graph::PassOptions options;
    options.assume_limits = true;
    const auto report = graph::optimize(b.graph, options, evaluator());
    return graph::prove_encoder_decoder(b.graph, b.graph.outputs[0], report.limits);
  }
  graph::EncoderDecoder proves(ValueId output, const char* what) {
    auto proof = prove(output);
    CHECK(proof.rows.has_value()) << what << ": " << proof.reason;
    return proof.rows ? std::move(*proof.rows) : graph::EncoderDecoder{};
  }
  void refuses(ValueId output, const std::string& reason, const char* what) {
    const auto proof = prove(output);
    CHECK(!proof.rows.has_value()) << what;
    CHECK(proof.reason.find(reason) != std::string::npos) << what << ": " << proof.reason;
  }
};

KVIK_TEST(attention_to_the_source_is_proved) {
  Model m;
  const auto proved = m.proves(m.cross(), "one attention");
  CHECK_EQ(proved.target.attention.size(), 1U);
  const graph::RowAttention& attention = proved.target.attention.at(0);
  CHECK(attention.mixing == graph::Mixing::kSource);
  CHECK_EQ(attention.heads, kHeads);
  CHECK_EQ(attention.kv_heads, kHeads);
  CHECK_EQ(attention.head_dim, kDim);
  CHECK(!attention.bias.has_value());
  const std::vector<std::int64_t> keys_then_values{kWidth, 2 * kWidth};
  CHECK(proved.source && proved.source->output_ends == keys_then_values);
}

KVIK_TEST(the_target_also_reads_itself) {
  Model m;
  const auto proved = m.proves(m.b.node("Add", {m.causal(), m.cross(m.whole_source())}), "both");
  CHECK_EQ(proved.target.attention.size(), 2U);
  CHECK_EQ(proved.source.value().attention.size(), 1U);
  CHECK(proved.source->mixing == graph::Mixing::kWhole);
}

KVIK_TEST(a_mask_of_the_source_is_supplied) {
  Model m;
  const ValueId mask = m.b.input("source_mask", {sym("b"), sym("t")}, DType::kI64);
  const auto proved = m.proves(m.cross(m.source.x, m.hiding(mask)), "a mask of padding");
  const graph::RowAttention& attention = proved.target.attention.at(0);
  CHECK(!attention.bias.has_value()) << "nothing is padded, so it hides nothing";
}

constexpr const char* kOther = "is of the source";

KVIK_TEST(a_source_that_is_read_otherwise_is_refused) {
  {
    Model m;
    const ValueId mean = m.b.node("ReduceMean", {m.source.x, m.b.ints({1})});
    m.refuses(m.b.node("Add", {m.target.x, mean}), kOther,
              "a mean over the source, and no attention");
  }
  {
    Model m;
    const ValueId mean = m.b.node("ReduceMean", {m.source.x, m.b.ints({1})});
    const ValueId both = m.b.node("Add", {m.target.x, mean});
    m.refuses(m.b.node("Add", {m.cross(), both}), kOther, "a mean beside an attention");
  }
  {
    Model m;
    const ValueId first =
        m.b.node("Gather", {m.source.x, m.b.ints({0})}, {{"axis", std::int64_t{1}}});
    m.refuses(m.b.node("Add", {m.cross(), first}), kOther, "the source's first token");
  }
  {
    Model m;
    const ValueId keys = m.source.heads();
    m.refuses(m.attend(keys, m.target.heads()), kOther,
              "keys of the source with values of the target");
  }
  {
    Model m;
    const ValueId both = m.b.node("Concat", {m.source.x, m.target.x}, {{"axis", std::int64_t{1}}});
    const ValueId length =
        m.b.node("Shape", {both}, {{"start", std::int64_t{1}}, {"end", std::int64_t{2}}});
    const ValueId shape = m.b.node("Concat", {m.source.dim(0), length, m.b.ints({kHeads, kDim})},
                                   {{"axis", std::int64_t{0}}});
    const std::vector<std::int64_t> perm{0, 2, 1, 3};
    const ValueId keys =
        m.b.node("Transpose", {m.b.node("Reshape", {both, shape})}, {{"perm", perm}});
    m.refuses(m.attend(keys, keys), kOther, "source and target in one attention");
  }
}

KVIK_TEST(masks_between_the_sequences_are_refused) {
  for (const char* op : {"LessOrEqual", "GreaterOrEqual", "Equal"}) {
    Model m;
    const ValueId mask =
        m.b.node("Where", {compare(m.target, m.source, op), m.b.scalar(0.0F), m.b.scalar(kLow)});
    m.refuses(m.cross(m.source.x, mask), "hides some of the source", op);
  }
  // By the ids themselves: what is hidden would depend on what the source says.
  Model m;
  const ValueId pad = m.b.node("Equal", {m.source.ids, m.b.ints({0})});
  const ValueId mask =
      m.b.node("Unsqueeze",
               {m.b.node("Where", {pad, m.b.scalar(kLow), m.b.scalar(0.0F)}), m.b.ints({1, 2})});
  m.refuses(m.cross(m.source.x, mask), "hides some of the source",
            "a mask made of the source's ids");
}

KVIK_TEST(a_target_that_reads_ahead_is_refused) {
  Model m;
  const ValueId h = m.target.heads();
  m.refuses(m.b.node("Add", {m.attend(h, h), m.cross()}), "not causal", "no mask on the target");
}

KVIK_TEST(a_source_that_reads_the_target_is_refused) {
  Model m;
  const ValueId from_target =
      m.b.node("Attention", {m.source.heads(), m.target.heads(), m.target.heads()});
  m.refuses(m.cross(m.source.rows(from_target)), kOther, "an encoder that attends to the target");
}

KVIK_TEST(inputs_must_be_two_sequences_of_one_batch) {
  {
    Model m;
    m.refuses(m.target.x, "no attention and no state of the target reads the source",
              "the source is not read");
  }
  {
    Model m("other");
    m.refuses(m.cross(), "batches of different sizes", "another batch");
  }
  {
    Model m;
    m.b.input("style", {sym("b"), sym("s")});
    m.refuses(m.cross(), "'style' has no meaning", "an input that the engine cannot supply");
  }
  {
    Model m;
    m.b.input("third_mask", {sym("b"), sym("u")}, DType::kI64);
    m.refuses(m.cross(), "more than two lengths", "three sequences");
  }
  {
    Model m;
    m.b.input("image", {sym("b"), Expr(3), sym("t")});
    m.refuses(m.cross(), "'image' is no sequence", "an input that is no sequence");
  }
}

}  // namespace
}  // namespace kvik::test

int main(int argc, char** argv) {
  return kvik::test::run_all(argc, argv);
}
