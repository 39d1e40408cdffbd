// The two products of a head's attention, Q K^T and P V.
#pragma once

#include <cstdint>

#include "base/math.h"
#include "kernels/abi.h"
#include "ops/packed_linear.h"

namespace tokprune {

// Query rows per block: the block of scores and one pair of key panels stay in the first-level
// cache for sequences of usual length. Tiles take rows by 32.
constexpr int64_t kQueryBlock = 24;
constexpr int64_t kTileQueryBlock = 2 * kernels::kTileRows;
constexpr int64_t kMaxQueryBlock = kTileQueryBlock;

// In what the attention of a sequence of so many rows is computed: bf16 is float32 where the level
// has no bfloat16 products, int8 for sequences so short that rounding costs more than it saves.
Precision attention_precision(const kernels::KernelTable& kernels, Precision precision,
                              int64_t rows);

// C[m, n] = A[m, k] B[k, n]. B, the keys or the values, is packed once; A, the queries or their
// probabilities, comes in blocks of at most kMaxQueryBlock rows, which are rounded one after the
// other and stay float32 where they lie.
struct HeadProduct {
  const kernels::KernelTable& kernels;
  Precision precision;  // attention_precision
  float* packed;        // B, packed_floats(k, n)
  float* rounded;       // a block of A, rounded_floats(m, k); unused in float32
  int64_t k;
  int64_t n;

  // Sizes for any precision: two bfloat16 take the memory of one float, int8 and its scales less.
  static int64_t packed_floats(int64_t k, int64_t n) {
    return round_up(k, kernels::kBf16Depth) * round_up(n, kernels::kPanel);
  }
  static int64_t rounded_floats(int64_t m, int64_t k) {
    return round_up(m, kernels::kTileRows) * round_up(k, kernels::kBf16Depth);
  }

  void pack_transposed(const float* src, int64_t ld) const;  // src[n, k]
  void pack_rows(const float* src, int64_t ld) const;        // src[k, n]

  // C gets whole panels of columns. A is the queries or, with row_scale, probabilities between 0
  // and 1 with zeros up to round_up(k, 16); row_scale[m] multiplies the rows of C.
  void multiply(const float* src, int64_t ld, int64_t m, float* c, int64_t ldc,
                const float* row_scale) const;

 private:
  struct Bf16 {
    uint16_t* high;
    uint16_t* low;  // the second terms, if there are any
  };
  Bf16 packed_terms() const { return split(packed, packed_floats(k, n)); }
  Bf16 rounded_terms(int64_t m) const { return split(rounded, rounded_floats(m, k)); }
  Bf16 split(float* memory, int64_t size) const {
    auto* high = reinterpret_cast<uint16_t*>(memory);
    return {high, precision == Precision::kBf16x3 ? high + size : nullptr};
  }

  struct Int8 {
    int8_t* panels;
    float* scale;  // [round_up(n, 16)]
    int32_t* sum;  // likewise
  };
  Int8 packed_int8() const {
    const int64_t columns = round_up(n, kernels::kPanel);
    float* scale = packed + depth() * columns / static_cast<int64_t>(sizeof(float));
    return {reinterpret_cast<int8_t*>(packed), scale, reinterpret_cast<int32_t*>(scale + columns)};
  }
  void pack_int8(const float* src, int64_t ld, int64_t column) const;
  void multiply_int8(const float* src, int64_t ld, int64_t m, float* c, int64_t ldc,
                     const float* row_scale) const;

  int64_t depth() const;  // k, padded to what the layout needs
};

}  // namespace tokprune
