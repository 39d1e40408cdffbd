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

// Columns of one weight panel; the packed layout is [N/16][K][16], the same for every level.
constexpr int64_t kPanel = 16;

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

// Computes  C[m, 16*panels] (+)= A[m, k] B[k, 16*panels], then the epilogue.
// Shapes    any m >= 0, panels >= 0, k >= 0. B: `panels` panels, b_panel_stride elements apart.
// Padding   A is read on [m, k] only; C is written on whole panels; bias is read on whole panels.
// Aliasing  residual does not overlap C, which holds the product before the epilogue reads it.
// Numerics  every element is one chain of fused multiply-adds (scalar level: multiply, add) in
//           ascending k. accumulate continues the chain from C, so splitting k changes no bit.
// Why not   one GEMM call per layer from a library: M, the number of surviving tokens, is new at
//           every layer of every input, and set-up per shape would cost more than it saves.
struct GemmArgs {
  const float* a;
  int64_t lda;
  const float* b;
  int64_t b_panel_stride;
  float* c;
  int64_t ldc;
  int64_t m;
  int64_t panels;
  int64_t k;
  bool accumulate;
  Epilogue epilogue;
  const float* bias;
  const float* residual;
  int64_t ld_residual;
  const int32_t* residual_rows;  // row of `residual` for each row of C; null = same row
  const float* row_scale;        // [m]
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

// A null entry inherits from the next lower level.
struct KernelTable {
  int64_t gemm_rows;  // rows of the largest register tile: the unit in which callers split M
#define TOKPRUNE_KERNEL(name, Args) void (*name)(const Args& args);
#include "kernels/manifest.inc"
};

extern const KernelTable kScalarTable;
extern const KernelTable kAvx2Table;
extern const KernelTable kAvx512Table;

}  // namespace tokprune::kernels
