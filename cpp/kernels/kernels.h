// The kernel table: one function pointer per slot, one table per instruction set.
//
// Kernels take pointers, sizes and strides, never tensors; they allocate nothing, throw nothing and
// know nothing of threads: the caller hands each thread its own range of rows or columns.
//
// "Numbers that do not move": for one ISA, what a kernel computes for one output row depends on
// that row's inputs alone, never on how many rows the call has, on the range of columns, or on
// which thread runs it. Every slot below promises that.
//
// Unless a slot says otherwise: no alignment is required, inputs and outputs must not overlap
// except where they are the very same buffer ("in place" is allowed where stated), nothing is read
// or written beyond the sizes given, and a size of 0 is a no-op. Strides count elements.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvik/cache_type.h"

namespace kvik::kernels {

enum class Isa : std::uint8_t {
  kReference,
  kAvx2,        // with FMA and F16C
  kAvx2Vnni,    // and AVX-VNNI
  kAvx512,      // F, BW, DQ, VL
  kAvx512Vnni,  // and AVX512_VNNI
  kAvx512Bf16,  // and AVX512_BF16
  kAmx,         // and AMX_TILE, AMX_INT8, AMX_BF16
  kNeon,
  kNeonDot,  // and the dot products of Armv8.2
};

// Element-wise functions, in the order of their ONNX names.
enum class Unary : std::uint8_t {
  kExp,
  kTanh,
  kSigmoid,
  kErf,
  kGeluErf,
  kGeluTanh,
  kSilu,
  kRelu,
  kSqrt,
  kReciprocal,
  kNeg,
  kAbs,
  kSin,
  kCos,
  kLog,
  kSquare,
};

// Binary element-wise functions.
enum class Binary : std::uint8_t { kAdd, kSub, kMul, kDiv, kMin, kMax };

// What a matrix product does to each output before it is stored, in this order:
//   y = activation(x·W + bias) + residual
enum class Activation : std::uint8_t { kNone, kGeluErf, kGeluTanh, kSilu, kRelu, kTanh, kSigmoid };

struct MatmulEpilogue {
  const float* bias = nullptr;  // [n] or null
  Activation activation = Activation::kNone;
  const float* residual = nullptr;  // [rows, n] with row stride residual_stride, or null; may be y
  std::ptrdiff_t residual_stride = 0;
};

// Consecutive k of a quantised product: int4 weights of a column share a scale in a group, and
// quantised rows carry the sum of each. k is padded with zeros to whole groups.
inline constexpr int kGroup = 32;

// Functions of the gates of recurrent cells, as ONNX defines them; those that have parameters:
//   Affine α·x + β;  Elu x or α·(e^x - 1) below 0;  HardSigmoid max(0, min(1, α·x + β));
//   LeakyRelu x or α·x below 0;  ScaledTanh α·tanh(β·x);  ThresholdedRelu x above α, else 0
enum class CellFunction : std::uint8_t {
  kAffine,
  kElu,
  kHardSigmoid,
  kLeakyRelu,
  kRelu,
  kScaledTanh,
  kSigmoid,
  kSoftplus,
  kSoftsign,
  kTanh,
  kThresholdedRelu,
};

struct CellActivation {
  CellFunction function = CellFunction::kSigmoid;
  float alpha = 0.0f;
  float beta = 0.0f;
};

// What is computed of a recurrent cell after its products; a, b, c, d are its gates' sums, all
// operations element by element, h the hidden state before and c0 the cell state before.
enum class CellStage : std::uint8_t {
  kRnn,        // out = f(a)
  kGruReset,   // a, the reset gate's sum, becomes f(a) · h
  kGru,        // a update, b new: z = f(a), out = (1 - z) · g(b) + z · h
  kGruLinear,  // a update, b new, c reset, d = h·R + bias: as kGru with g(b + f(c) · d)
  // a input, b output, c forget, d new; p peepholes:
  // i = f(a + p_i·c0), k = f(c + p_f·c0), c1 = k·c0 + i·g(d), out = f(b + p_o·c1) · h(c1)
  kLstm,
};

// Some hidden units of some rows of a recurrent cell.
struct CellArgs {
  CellStage stage;
  CellActivation f, g, h;
  // Bound on the magnitude of what f and g are given (not h); infinity: none.
  float clip;
  bool coupled;  // kLstm: the forget gate is 1 - i
  std::int64_t rows;
  std::int64_t n;   // hidden units
  float* gates[4];  // a, b, c, d: [rows, n] each; null where the stage has none
  std::ptrdiff_t gates_stride;
  const float* state;  // h: [rows, n]; GRU alone
  std::ptrdiff_t state_stride;
  float* cell;  // c0, becomes c1: [rows, n]; kLstm alone
  std::ptrdiff_t cell_stride;
  const float* peepholes[3];  // p_i, p_o, p_f: [n] each, or all null
  float* out;                 // [rows, n]; not for kGruReset
  std::ptrdiff_t out_stride;
};

// The few elements of a row that are far larger than the others. With them the others would share
// few of the 255 steps of a byte; they keep their value instead, and their byte is 0.
struct RowOutliers {
  static constexpr int kMost = 8;
  // An outlier is larger than this many times the row's mean magnitude.
  static constexpr int kTimesMean = 8;
  // Outliers are set apart where the row's largest element is larger than so many times the mean,
  // and without them the step at least halves.
  static constexpr int kLargestTimesMean = 11;
  static constexpr float kLargestRest = 0.5f;

  std::int32_t count;
  std::int32_t place[kMost];  // ascending; elements of the row
  float value[kMost];
};

// Rows as 8-bit integers: x[r, i] ≈ scale[r] · q[r, i], but for the row's outliers.
struct QuantizedRows {
  const std::int8_t* q;         // [rows, groups · kGroup], in [-127, 127]; 4-byte aligned
  const float* scale;           // [rows]
  const std::int32_t* sums;     // [rows, groups + 1]: Σ q over each group (int4), then over all
  const RowOutliers* outliers;  // [rows]
  std::int64_t rows;
  std::int64_t groups;
};

// Integer weights in panels (see below), and a scale per column.
struct IntegerPanels {
  const std::uint8_t* data;   // kAlignment-aligned
  const float* column_scale;  // [round_up(n, panel)]
};

// Rows in bfloat16.
struct RoundedRows {
  const std::uint16_t* data;  // [rows, rounded_stride(k)], zeros from k to whole groups
  std::int64_t rows;
  std::int64_t k;
};
// Elements from one rounded row to the next: an odd number of lines of 64 bytes, since at a power
// of two the rows of a tile would fall into a few sets of L1 and drive each other out.
constexpr std::int64_t rounded_stride(std::int64_t k) {
  return ((k + kGroup - 1) / kGroup | 1) * kGroup;
}

// Keys and values of one key/value head, in blocks of kKvBlock positions. The blocks of a sequence
// need not be adjacent: k_blocks[b] and v_blocks[b] hold positions [b·kKvBlock, (b+1)·kKvBlock).
//   K block: [head_dim, kKvBlock]     (a dimension's kKvBlock positions are adjacent)
//   V block: [kKvBlock, value_dim]
// Their elements are fp32, bfloat16 or signed bytes. A block of bytes begins with the scales of its
// positions, float [kKvBlock]: an element is scale · byte. Blocks are kAlignment-aligned. What
// lies at positions that no row sees is read with its neighbours and changes no result, be it NaN.
inline constexpr int kKvBlock = 64;

constexpr int cache_element_bytes(CacheType type) {
  return type == CacheType::kF32 ? 4 : type == CacheType::kBF16 ? 2 : 1;
}
// Bytes of the scales at the beginning of a block.
constexpr int cache_scale_bytes(CacheType type) {
  return type == CacheType::kI8 ? kKvBlock * 4 : 0;
}
// Bytes of a K block or a V block of heads of `dim` elements.
constexpr std::int64_t cache_block_bytes(CacheType type, std::int64_t dim) {
  return cache_scale_bytes(type) + dim * kKvBlock * cache_element_bytes(type);
}

// A row's keys are attended to in segments that begin at multiples of this position, each by
// itself; their sums are then joined in ascending order. So a long sequence can be shared among
// threads, and whether it is does not change a bit.
inline constexpr std::int64_t kKvSegment = 16 * kKvBlock;

struct AttentionArgs {
  const float* q;           // [rows, head_dim]: `rows` queries of one head of one sequence
  std::ptrdiff_t q_stride;  // elements between consecutive query rows
  int rows;
  int head_dim;
  int value_dim;
  CacheType cache;
  const void* const* k_blocks;
  const void* const* v_blocks;
  // Query r sees the keys at positions [first_key[r], last_key[r]]; first_key may be null (all 0).
  // last_key[r] >= first_key[r] is not required: an empty range gives a row of zeros.
  const std::int64_t* first_key;
  const std::int64_t* last_key;
  float scale;    // applied to q·k
  float softcap;  // 0: none; else s = softcap · tanh(s / softcap)
  // Added to the scaled (and capped) score of query r and key j: bias[r·bias_stride + j], for
  // j in the visible range. Null: none. -inf hides a key.
  const float* bias;
  std::ptrdiff_t bias_stride;
  float* out;  // [rows, value_dim]
  std::ptrdiff_t out_stride;
  float* scratch;          // attention_scratch(head_dim, value_dim) floats, kAlignment-aligned
  const void* next_block;  // a K block that the caller will pass next, to be fetched; or null
};

// What a segment makes of some rows: with s the scores, `top` their maximum, `total` = Σ e^(s -
// top) and out = Σ e^(s - top) · v. Of a row that sees nothing there: -inf, 0 and zeros.
struct AttentionPart {
  float* out;  // [rows, value_dim]
  std::ptrdiff_t out_stride;
  float* top;    // [rows]
  float* total;  // [rows]
};

// Keys and values of `count` adjacent positions, to be stored into one block from `slot` on.
struct CacheRows {
  const float* k;  // [count, head_dim]
  std::ptrdiff_t k_stride;
  const float* v;  // [count, value_dim]
  std::ptrdiff_t v_stride;
  int head_dim;
  int value_dim;
  int slot;  // slot + count <= kKvBlock
  int count;
};

struct KernelTable {
  Isa isa;
  // "reference", "avx2", "avx2vnni", "avx512", "avx512vnni", "avx512bf16", "amx", "neon", "neondot"
  const char* name;

  // ---- Matrix product with packed weights -------------------------------------------------
  // y[r, c] = epilogue( Σ_k x[r, k] · w[k, c] ), accumulated in fp32, k ascending, one fused
  // multiply-add a step, whatever `rows` and the column range are.
  //
  // Weights are packed once into panels of `panel` columns: panel p holds columns
  // [p·panel, (p+1)·panel), zero-padded, as [k, panel]; panels follow each other.
  // packed size in floats = round_up(n, panel) · k. The packed buffer is kAlignment-aligned.
  int panel;
  // Packs panels [panel_begin, panel_end) from w, where element (k, c) is
  // w[k · k_stride + c · c_stride].
  void (*pack_f32)(const float* w, std::ptrdiff_t k_stride, std::ptrdiff_t c_stride, std::int64_t k,
                   std::int64_t n, std::int64_t panel_begin, std::int64_t panel_end, float* packed);
  // Computes columns of panels [panel_begin, panel_end) for `rows` rows.
  // x: [rows, k] with row stride x_stride; y: [rows, n] with row stride y_stride.
  void (*matmul_f32)(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                     const float* packed, std::int64_t n, std::int64_t panel_begin,
                     std::int64_t panel_end, const MatmulEpilogue& epilogue, float* y,
                     std::ptrdiff_t y_stride);

  // ---- Matrix product with low-precision weights ----------------------------------------------
  // Panels hold the same columns as above. Weights are stored shifted to be unsigned, because
  // x86 multiplies unsigned by signed bytes; the sums of the rows undo the shift. (NEON multiplies
  // signed bytes, and shifts those of int8 back as it loads them.)
  // The sums of products are exact integers; what is done to them in fp32 has one fixed order.
  // With D(r, c, g) = Σ q[r, k] · (u[k, c] - shift) over the k of group g:
  //
  // Weights to panels, one panel a call, from a block [k, columns] of fp32 weights, columns <=
  // panel. What pads k and columns is 0. A column with a NaN or an infinity gets the scale NaN.
  // int8, symmetric: column_scale = max|w| / 127, u = round(w · 127/max|w|) + 128.
  void (*pack_i8)(const float* block, std::int64_t k, int columns, std::uint8_t* panel,
                  float* column_scale);
  // int4, symmetric in groups. column_scale is the power of two next below or at max|w| of the
  // column. With e the weight of a group that is largest in magnitude, s is one of e/place for the
  // places -7.2, -7.6, -8, -8.4, -8.8, refined by least squares: for the integers q that e/place
  // gives, s = Σ w·q / Σ q², of the place that leaves the smallest Σ (w - s·q)² (the first of
  // equals). What is stored is s / column_scale in binary16, and u = round(w/s) + 8 within [0, 15]
  // for the s that was stored.
  void (*pack_i4)(const float* block, std::int64_t k, int columns, std::uint8_t* panel,
                  float* column_scale);
  // bfloat16, to nearest, ties to even; a NaN stays one.
  void (*pack_bf16)(const float* block, std::int64_t k, int columns, std::uint16_t* panel);

  // q = round(x · 127/max|x|) to nearest, ties to even; scale = max|x| / 127, per row. A row whose
  // largest magnitude is below 1e-30 is zeros with scale 0; one with a NaN or an infinity is zeros
  // with scale NaN. Where 127 · k > kLargestTimesMean · Σ|q|, the row may have outliers: the i with
  // |q[i]| · k > kTimesMean · Σ|q|; of more than kMost, the largest |x|, the first of equals. If
  // max|x| of the others is at most kLargestRest · max|x|, they are set apart: q and scale are then
  // made of the row without them. Integers decide, so that every instruction set decides alike.
  // q: [rows, groups · kGroup], scale and outliers: [rows], sums: [rows, groups + 1]: of each
  // group, then of all. Those of the groups, which int4 weights need, are written if `group_sums`.
  void (*quantize_rows)(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                        bool group_sums, std::int8_t* q, float* scale, std::int32_t* sums,
                        RowOutliers* outliers);
  // shift 128; f = (float(Σ_g D(r, c, g)) · column_scale[c]) · scale[r], then for each outlier
  // f = fma(float(u[place, c] - shift) · column_scale[c], value, f), and y = epilogue( f ).
  // A panel is [groups · kGroup / 4, panel, 4] bytes u: four k of a column are adjacent.
  void (*matmul_i8)(const QuantizedRows& x, const IntegerPanels& w, std::int64_t n,
                    std::int64_t panel_begin, std::int64_t panel_end,
                    const MatmulEpilogue& epilogue, float* y, std::ptrdiff_t y_stride);
  // shift 8; f = 0, then for each group f = fma(float(D(r, c, g)), s[g, c], f), then
  // f = (f · column_scale[c]) · scale[r], then for each outlier
  // f = fma((float(u[place, c] - shift) · s[g, c]) · column_scale[c], value, f) with the g that
  // place is in, and y = epilogue( f ).
  // A group of a panel is its scales s [panel] in binary16, then [kGroup / 8, panel, 4] bytes: the
  // low nibbles of byte j are k = 8·i + j of the group, the high ones k = 8·i + 4 + j.
  void (*matmul_i4)(const QuantizedRows& x, const IntegerPanels& w, std::int64_t n,
                    std::int64_t panel_begin, std::int64_t panel_end,
                    const MatmulEpilogue& epilogue, float* y, std::ptrdiff_t y_stride);
  // As matmul_f32 with weights in bfloat16, widened as they are read. A panel is
  // [round_up(k, 2) / 2, panel, 2]: two k of a column are adjacent.
  void (*matmul_bf16)(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                      const std::uint16_t* packed, std::int64_t n, std::int64_t panel_begin,
                      std::int64_t panel_end, const MatmulEpilogue& epilogue, float* y,
                      std::ptrdiff_t y_stride);

  // Whether this instruction set multiplies pairs of bfloat16 numbers: products with bfloat16
  // weights are then made by round_rows and matmul_bf16_rows, else by matmul_bf16.
  bool rounds_rows;
  // To bfloat16, to nearest, ties to even; a NaN stays one, a subnormal number too. What pads k to
  // whole groups is 0; what is between them and the next row is not written. out: [rows,
  // rounded_stride(k)].
  void (*round_rows)(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t k,
                     std::uint16_t* out);
  // y[r, c] = epilogue( Σ_k x[r, k] · w[k, c] ), panels as for matmul_bf16. Products are exact. The
  // order of the sum in fp32 is the instruction's own, one for all rows and columns: each product
  // takes part in at most k + 2 roundings to nearest. Factors and sums below 2^-126 in magnitude
  // may count as 0. Null where rounds_rows is false, but for the reference, which has it for
  // comparison.
  void (*matmul_bf16_rows)(const RoundedRows& x, const std::uint16_t* packed, std::int64_t n,
                           std::int64_t panel_begin, std::int64_t panel_end,
                           const MatmulEpilogue& epilogue, float* y, std::ptrdiff_t y_stride);

  // ---- Attention ----------------------------------------------------------------------------
  // out[r] = Σ_j softmax_j(score(r, j)) · v[j], online over spans of a segment in ascending order,
  // which lie at fixed positions, then over the segments; fp32 or wider. The sum is over the
  // visible keys alone. A row whose keys are all hidden by a bias of -inf is zeros, as one
  // that sees none; a NaN is not hidden.
  void (*attention_f32)(const AttentionArgs& args);
  std::size_t (*attention_scratch)(int head_dim, int value_dim);  // in floats
  // The same in steps, with the same bits. First the sums of each segment (a position divided by
  // kKvSegment); args.out is not used.
  void (*attention_part_f32)(const AttentionArgs& args, std::int64_t segment,
                             const AttentionPart& part);
  // Then, segment by segment in ascending order, their sum in the first one: sums += more. Segments
  // where no row sees anything may be left out.
  void (*attention_join_f32)(const AttentionPart& sums, const AttentionPart& more, int rows,
                             int value_dim);
  // At last out[r] = sums.out[r] / sums.total[r], or zeros where the total is 0. out: [rows,
  // value_dim]. In place allowed.
  void (*attention_divide_f32)(const AttentionPart& sums, int rows, int value_dim, float* out,
                               std::ptrdiff_t out_stride);
  // Stores keys and values. As bytes: per position the scale and the integers that quantize_rows
  // makes of a row without outliers, keys and values apart.
  void (*store_kv)(CacheType type, const CacheRows& rows, void* k_block, void* v_block);

  // ---- Rows ---------------------------------------------------------------------------------
  // y = (x - mean) / sqrt(var + epsilon) · scale + bias, per row of n; variance in two passes.
  // bias and scale may be null. In place allowed.
  void (*layer_norm_f32)(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t n,
                         const float* scale, const float* bias, float epsilon, float* y,
                         std::ptrdiff_t y_stride);
  // y = x / sqrt(mean(x²) + epsilon) · scale, per row of n. scale may be null. In place allowed.
  void (*rms_norm_f32)(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t n,
                       const float* scale, float epsilon, float* y, std::ptrdiff_t y_stride);
  // y = softmax(x) per row of n; a row that is all -inf gives NaN as ONNX's Softmax does.
  // In place allowed.
  void (*softmax_f32)(const float* x, std::ptrdiff_t x_stride, std::int64_t rows, std::int64_t n,
                      float* y, std::ptrdiff_t y_stride);
  // Rotary embedding of one row: for each head, pairs (x1, x2) of the first 2·half elements become
  // (x1·cos - x2·sin, x1·sin + x2·cos). cos, sin: [half]. interleaved: pairs are (2i, 2i+1), else
  // (i, i+half). Elements from 2·half to head_dim are copied. x, y: [heads, head_dim]. In place
  // allowed.
  void (*rotary_f32)(const float* x, int heads, int head_dim, int half, bool interleaved,
                     const float* cos, const float* sin, float* y);

  // ---- Element-wise -------------------------------------------------------------------------
  // y[i] = f(x[i]). In place allowed. The result of an element does not depend on n or on its
  // place in the buffer. Errors of the approximations are stated in kernels/math.inl.h.
  void (*unary_f32)(Unary f, const float* x, std::int64_t n, float* y);
  // y[i] = a[i·a_step] ∘ b[i·b_step], steps 0 (a scalar) or 1. In place allowed.
  void (*binary_f32)(Binary f, const float* a, int a_step, const float* b, int b_step,
                     std::int64_t n, float* y);
  // y[i] = silu(gate[i]) · up[i]. In place allowed on either.
  void (*silu_mul_f32)(const float* gate, const float* up, std::int64_t n, float* y);
  // y[i] = bias[i] + Σ_t x[t][i] · w[t·n + i], accumulated from 0 in fp32, t ascending, one fused
  // multiply-add a step. A null x[t] is left out; bias may be null.
  void (*weighted_sum_f32)(const float* const* x, const float* w, int taps, std::int64_t n,
                           const float* bias, float* y);

  // ---- Recurrent cells ------------------------------------------------------------------------
  // See CellStage. An element's result does not depend on its place among rows and hidden units.
  // Elements of one pass: sigmoid and tanh as in kernels/math.inl.h, the rest in fp32.
  void (*recurrent_cell_f32)(const CellArgs& args);
};

// The table of an ISA that this CPU can run, or null. Reference is always there.
const KernelTable* table_for(Isa isa) noexcept;

// The best table for this CPU, or the one that the environment variable KVIK_ISA names. Decided
// once per process. Throws kvik::Error(kInvalidArgument) that lists what this CPU has when the
// name is unknown or the CPU lacks it.
const KernelTable& active_table();

}  // namespace kvik::kernels
