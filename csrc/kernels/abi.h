// The boundary between kernels and everything above them: plain argument structs and a table of
// function pointers. One table exists per instruction-set level; nothing else is exported.
//
// Common to all kernels
//   Layout    activations are row-major float32 with a row stride (ld*) in elements.
//   Padding   a destination may be written up to the next multiple of 16 columns; sources are read
//             only where stated.
//   Aliasing  destination and sources do not overlap unless stated.
//   Numerics  each output row depends only on its own inputs: never on how many rows a call has,
//             nor on how a caller splits rows, columns or the inner dimension into calls.
#pragma once

#include <cstdint>

namespace tokprune::kernels {

// Columns of one weight panel. Packed layouts, the same for every level, so that packed weights can
// be shared: float32 [N/16][K][16]; bfloat16 [N/16][K/2][16][2] with K padded to 32; int8
// [N/16][K/4][16][4] with K padded to 64. A panel is one contiguous stream, and 64 bytes of it are
// one vector, or one row of a matrix tile.
constexpr int64_t kPanel = 16;
constexpr int64_t kBf16Depth = 32;
constexpr int64_t kInt8Depth = 64;
// Rows of one matrix tile: operands that a level may read in tiles are padded to this many rows.
constexpr int64_t kTileRows = 16;

// What happens to a finished block of C, in place, while it is still in the first-level cache.
enum class Epilogue : int32_t {
  kNone,          // C = A B                  (also: partial sums, to be continued)
  kRowScale,      // C = (A B) * row_scale
  kBias,          // C = A B + bias
  kBiasResidual,  // C = A B + bias + residual[residual_rows]
#define TOKPRUNE_ACTIVATION(name, hf_names) kBias_##name,  // C = name(A B + bias)
#include "kernels/manifest.inc"
  kCount,
};

struct EpilogueArgs {
  Epilogue kind;
  const float* bias;
  const float* residual;
  int64_t ld_residual;
  const int32_t* residual_rows;  // row of `residual` for each row of C; null = same row
  const float* row_scale;        // [m]
};

// Computes  C[m, 16*panels] (+)= A[m, k] B[k, 16*panels], then the epilogue.
// Shapes    any m >= 0, panels >= 0, k >= 0. B: `panels` panels, b_panel_stride elements apart.
// Padding   A is read on [m, k] only; C is written on whole panels; bias is read on whole panels.
// Aliasing  residual does not overlap C, which holds the product before the epilogue reads it.
// Numerics  every element is one chain of fused multiply-adds (scalar level: multiply, add) in
//           ascending k. accumulate continues the chain from C, so splitting k changes no bit.
// Why not   one GEMM call per layer from a library: M, the number of surviving tokens, is new at
//           every layer of every input, and set-up per shape would cost more than it saves.
template <class Weight>
struct GemmOf {
  const float* a;
  int64_t lda;
  const Weight* b;
  int64_t b_panel_stride;
  float* c;
  int64_t ldc;
  int64_t m;
  int64_t panels;
  int64_t k;
  bool accumulate;
  EpilogueArgs epilogue;
};
using GemmArgs = GemmOf<float>;

// As above with B in bfloat16, widened to float32 in registers. A split of k is even.
// Why       beside GemmBf16Args: on Intel CPUs VDPBF16PS runs at half the rate of float32
//           multiply-adds, and it needs A rounded as well.
using GemmBf16WeightArgs = GemmOf<uint16_t>;

// Computes  C = (A - a_zero) * a_scale  times  B * b_scale, then the epilogue.
// Shapes    A: uint8 [m, k]; B: int8 panels, -127 to 127; k a multiple of 64 on levels with matrix
//           tiles and of 4 on others, at most 2^16.
// Padding   A is readable on round_up(m, 16) rows; columns beyond the true k meet zeros in B.
// Numerics  exact int32 sums of products; value = float(sum - a_zero b_sum) * (a_scale b_scale),
//           each operation rounded once: the same bits on every level before the epilogue.
struct GemmInt8Args {
  const uint8_t* a;
  int64_t lda;
  const float* a_scale;   // [m]
  const int32_t* a_zero;  // [m]
  const int8_t* b;
  int64_t b_panel_stride;
  const float* b_scale;  // [16 * panels]
  const int32_t* b_sum;  // [16 * panels] column sums of B
  float* c;
  int64_t ldc;
  int64_t m;
  int64_t panels;
  int64_t k;
  EpilogueArgs epilogue;
};

// Computes  C = A B on bfloat16 operands, or, where a_low and b_low are given, A B + A B_low +
//           A_low B: float32-grade products of values split into two bfloat16 terms (bf16x3).
//           Only levels with matrix tiles are given them.
// Shapes    k a multiple of 32.
// Padding   A is readable on round_up(m, 16) rows; columns beyond the true k meet zeros in B.
// Numerics  float32 sums in an order that depends on k alone.
struct GemmBf16Args {
  const uint16_t* a;
  const uint16_t* a_low;
  int64_t lda;
  const uint16_t* b;
  const uint16_t* b_low;
  int64_t b_panel_stride;
  float* c;
  int64_t ldc;
  int64_t m;
  int64_t panels;
  int64_t k;
  EpilogueArgs epilogue;
};

// Computes  for each row, with zero in the range [low, high] of its values: scale = (high - low) /
//           255, zero = round(-low / scale), dst = round(src / scale) + zero, where 1 / scale is
//           255 / (high - low), or 0 if that range is not above 1e-30 or not finite.
// Shapes    src [rows, cols], dst [rows, round_up(cols, 64)].
// Padding   dst columns beyond cols are set to 0.
// Numerics  round half to even, each operation rounded once: the same bits on every level.
// Why not   symmetric int8: a zero point halves the error of the model (post-GELU rows are
// one-sided).
struct QuantizeRowsArgs {
  const float* src;
  int64_t ld_src;
  uint8_t* dst;
  int64_t ld_dst;
  float* scale;
  int32_t* zero;
  int64_t rows;
  int64_t cols;
};

// Computes  one int8 panel [depth / 4][16][4] of a matrix B[k, n] given row-major (the values of a
//           head, or its transposed keys): scale[j] = max_k |B[k, j]| / 127, sum[j] = sum_k dst,
//           dst = round(B * (127 / max)), where 127 / max is 0 if max is not above 1e-30.
// Shapes    src [k, n] with n <= 16; scale and sum [16]; depth a multiple of 4, at least k.
// Padding   columns n .. 16 and rows k .. depth are zero.
// Numerics  round half to even, each operation rounded once: the same bits on every level.
struct QuantizePanelArgs {
  const float* src;
  int64_t ld_src;
  int8_t* dst;
  float* scale;
  int32_t* sum;
  int64_t k;
  int64_t n;
  int64_t depth;
};

// Computes  dst = src in steps of 1 / 255, for values in [0, 1]. What rounding takes from a value
//           is added to the one 16 columns further: many small values do not vanish together.
// Shapes    src [rows, cols]; dst [rows, ld_dst] with ld_dst at least round_up(cols, 16).
// Padding   src is 0 in columns cols .. round_up(cols, 16); dst is written up to ld_dst, with zeros
//           in columns that src does not have.
// Numerics  round half to even, each operation rounded once: the same bits on every level.
// Why not   rounding each for itself: in long sequences most probabilities are below half a step,
//           which tripled the error of the model's attention (16 bits in two products: a third).
struct QuantizeProbabilitiesArgs {
  const float* src;
  int64_t ld_src;
  uint8_t* dst;
  int64_t ld_dst;
  int64_t rows;
  int64_t cols;
};

// Computes  dst = bfloat16(src) and, if dst_low is given, dst_low = bfloat16(src - dst).
// Shapes    src [rows, cols], dst [rows, round_up(cols, 32)].
// Padding   dst columns beyond cols are set to 0.
// Numerics  round to nearest even.
struct RoundRowsArgs {
  const float* src;
  int64_t ld_src;
  uint16_t* dst;
  uint16_t* dst_low;
  int64_t ld_dst;
  int64_t rows;
  int64_t cols;
};

// Computes  the panels of a matrix B[k, n] from its transpose, src[n, k] row-major (src row = one
//           column of B, as in a Linear weight or in the keys of a head).
// Padding   columns n .. round_up(n, 16) of the last panel are zero.
struct PackTransposedArgs {
  const float* src;
  int64_t ld_src;
  float* dst;
  int64_t n;
  int64_t k;
};

// Computes  the panels of a matrix B[k, n] given row-major (the values of a head).
// Padding   as above.
struct PackRowsArgs {
  const float* src;
  int64_t ld_src;
  float* dst;
  int64_t n;
  int64_t k;
};

// Computes  what PackTransposedArgs does in bfloat16 panels: dst from the rounded values and, if
//           dst_low is given, dst_low from what rounding leaves, as in RoundRowsArgs.
// Padding   rows k .. round_up(k, 32) and columns n .. round_up(n, 16) of B are zero.
// Numerics  round to nearest even.
struct PackTransposedBf16Args {
  const float* src;
  int64_t ld_src;
  uint16_t* dst;
  uint16_t* dst_low;
  int64_t n;
  int64_t k;
};

// Computes  what PackRowsArgs does, otherwise as above.
struct PackRowsBf16Args {
  const float* src;
  int64_t ld_src;
  uint16_t* dst;
  uint16_t* dst_low;
  int64_t n;
  int64_t k;
};

// Computes  s[i, j] = exp(scale * s[i, j] - max_j(scale * s[i, j])) in place, and
//           inv_sum[i] = 1 / sum_j s[i, j].
// Shapes    [rows, n], n >= 1.
// Padding   columns n .. round_up(n, 16) are set to 0.
// Why not   dividing here: the division is folded into the output of P V, one multiply per value.
struct SoftmaxArgs {
  float* s;
  int64_t ld;
  int64_t rows;
  int64_t n;
  float scale;
  float* inv_sum;
};

// Computes  s[i, j] = scale * s[i, j] + table[key_position[j] - query_position[i]].
// Shapes    [rows, n]; `table` points at the entry of distance 0.
struct RelativeBiasArgs {
  float* s;
  int64_t ld;
  int64_t rows;
  int64_t n;
  float scale;
  const float* table;
  const int32_t* query_position;
  const int32_t* key_position;
};

// Computes  s[i, j] = scale * s[i, j] + bias[j].
// Shapes    [rows, n].
// Numerics  a bias of zero leaves the bits of scale * s[i, j], which softmax would compute itself.
struct KeyBiasArgs {
  float* s;
  int64_t ld;
  int64_t rows;
  int64_t n;
  float scale;
  const float* bias;  // [n]
};

// Computes  t[i, j] = -A ln A of the probabilities A = p[i, j] * inv_sum[i], in place of the scores
// t
//           that softmax made p from (same scale), and row_sum[i] = sum_j t[i, j].
// Shapes    [rows, n], n >= 1; log_sum[i] = -ln(inv_sum[i]).
// Padding   columns n .. round_up(n, 16) of t are set to 0.
// Numerics  as A (log_sum - z) with z = ln p taken from the scores: no term is negative, so nothing
//           cancels, and A = 0 gives 0. Each operation rounded once, a fixed order of sums.
// Why not   the logarithm of A: one more function per value and instruction set.
struct EntropyArgs {
  const float* p;
  float* t;
  int64_t ld;  // of both
  int64_t rows;
  int64_t n;
  float scale;
  const float* inv_sum;
  const float* log_sum;
  float* row_sum;
};

// Computes  acc[j] += sum_i row_weight[i] * p[i, j], rows in ascending order.
// Shapes    [rows, n].
// Padding   acc and p are accessed up to round_up(n, 16).
// Numerics  fused multiply-adds on the unrounded probabilities; a fixed order whatever the batch.
struct ColumnSumArgs {
  const float* p;
  int64_t ld;
  int64_t rows;
  int64_t n;
  const float* row_weight;
  float* acc;
};

// Computes  dst[d(i)] = (src[s(i)] - mean) / sqrt(var + eps) * gamma + beta over `cols` columns.
// Shapes    i in [0, rows); s(i) = src_rows[i] or i, d(i) = dst_rows[i] or i.
// Padding   columns cols .. round_up(cols, 16) of dst are set to 0.
// Aliasing  in place is allowed when both row lists are null.
// Numerics  mean first, then the variance of the differences (two passes).
struct LayerNormArgs {
  const float* src;
  int64_t ld_src;
  const int32_t* src_rows;
  float* dst;
  int64_t ld_dst;
  const int32_t* dst_rows;
  int64_t rows;
  int64_t cols;
  const float* gamma;
  const float* beta;
  float eps;
};

// Computes  dst[i] = (word[word_id[i]] + type[type_id[i]]) + position[position_id[i]].
// Shapes    i in [0, rows), `cols` columns; tables are dense with row stride `cols`.
// Padding   columns cols .. round_up(cols, 16) of dst are set to 0.
struct EmbedArgs {
  const float* word;
  const int32_t* word_id;
  const float* position;
  const int32_t* position_id;
  const float* type;  // null = no segment embedding
  const int32_t* type_id;
  float* dst;
  int64_t ld_dst;
  int64_t rows;
  int64_t cols;
};

// Computes  the sparse reduce map dst[i] = sum_e weight[e] * src[column[e]],
//           e in [row_begin[i], row_begin[i + 1]), in ascending e.
// Shapes    i in [0, rows), `cols` columns. weight null = plain copies (exactly one e per row).
// Padding   columns cols .. round_up(cols, 16) of dst are set to 0.
// Aliasing  in place is allowed for plain copies whose columns ascend (a compaction).
struct ReduceRowsArgs {
  const float* src;
  int64_t ld_src;
  const int32_t* row_begin;  // null when weight is null
  const int32_t* column;
  const float* weight;
  float* dst;
  int64_t ld_dst;
  int64_t rows;
  int64_t cols;
};

// A null entry inherits from the level below. Optional kernels need bfloat16 products: they stay
// null where there are none.
struct KernelTable {
  int64_t gemm_rows = 0;  // rows of gemm's register tile: the unit in which callers split M
  bool tiles = false;     // products of converted rows run on matrix tiles
#define TOKPRUNE_KERNEL(name, Args) void (*name)(const Args& args) = nullptr;
#define TOKPRUNE_BF16_KERNEL TOKPRUNE_KERNEL
#include "kernels/manifest.inc"
};

extern const KernelTable kScalarTable;
extern const KernelTable kAvx2Table;
extern const KernelTable kAvxVnniTable;
extern const KernelTable kAvx512Table;
extern const KernelTable kAvx512VnniTable;
extern const KernelTable kAvx512Bf16Table;
extern const KernelTable kAmxTable;

}  // namespace tokprune::kernels
