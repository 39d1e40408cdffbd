// The two products of a head's attention, Q K^T and P V.
#pragma once

#include <cstdint>

#include "base/math.h"
#include "kernels/abi.h"
#include "ops/packed_linear.h"

namespace tokprune {

// How many bfloat16 terms stand for a value in the products of attention; 0 = one float32.
int attention_terms(const kernels::KernelTable& kernels, Precision precision);

// C[m, n] = A[m, k] B[k, n] in float32 or, where the level has such products, in bfloat16 terms. B,
// the keys or the values, is packed once; A, the queries or their probabilities, comes in blocks of
// rows, which are rounded one after the other and stay float32 where they lie.
struct HeadProduct {
  const kernels::KernelTable& kernels;
  int terms;
  float* packed;   // B, packed_floats(k, n)
  float* rounded;  // a block of A, rounded_floats(m, k); unused without terms
  int64_t k;
  int64_t n;

  // Sizes for any number of terms: two of them take the memory of one float.
  static int64_t packed_floats(int64_t k, int64_t n) {
    return round_up(k, kernels::kBf16Depth) * round_up(n, kernels::kPanel);
  }
  static int64_t rounded_floats(int64_t m, int64_t k) {
    return round_up(m, kernels::kTileRows) * round_up(k, kernels::kBf16Depth);
  }

  void pack_transposed(const float* src, int64_t ld) const;  // src[n, k]
  void pack_rows(const float* src, int64_t ld) const;        // src[k, n]

  // C gets whole panels of columns. row_scale[m] multiplies its rows; null = 1.
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
    return {high, terms == 2 ? high + size : nullptr};
  }
};

}  // namespace tokprune
