// Packing the keys and values of a head into bfloat16 panels [n / 16][k / 2][16][2]. Contracts:
// PackTransposedBf16Args, PackRowsBf16Args in abi.h.

#include "kernels/bf16_rounding.inl"

// Two neighbouring values of a row stay neighbours: sixteen rows are rounded, then transposed in
// units of two.
void pack_transposed_bf16(const PackTransposedBf16Args& p) {
  alignas(64) uint16_t rounded[2][kPanel * kBf16Depth];
  uint16_t* const dst[2] = {p.dst, p.dst_low};
  const int64_t depth = (p.k + kBf16Depth - 1) / kBf16Depth * kBf16Depth;
  for (int64_t n0 = 0; n0 < p.n; n0 += kPanel) {
    const int64_t lanes = p.n - n0 < kPanel ? p.n - n0 : kPanel;
    if (lanes < kPanel) __builtin_memset(rounded, 0, sizeof(rounded));
    for (int64_t k0 = 0; k0 < p.k; k0 += kBf16Depth) {
      round_rows({.src = p.src + n0 * p.ld_src + k0,
                  .ld_src = p.ld_src,
                  .dst = rounded[0],
                  .dst_low = p.dst_low ? rounded[1] : nullptr,
                  .ld_dst = kBf16Depth,
                  .rows = lanes,
                  .cols = p.k - k0 < kBf16Depth ? p.k - k0 : kBf16Depth});
      const int64_t at = n0 * depth + k0 * kPanel;
      for (int t = 0; t < (p.dst_low ? 2 : 1); ++t) {
        transpose_16x16(reinterpret_cast<const float*>(rounded[t]), kPanel,
                        reinterpret_cast<float*>(dst[t] + at));
      }
    }
  }
}

// Two rows are rounded side by side, then shuffled into pairs.
void pack_rows_bf16(const PackRowsBf16Args& p) {
  const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const int64_t depth = (p.k + kBf16Depth - 1) / kBf16Depth * kBf16Depth;
  for (int64_t k0 = 0; k0 < depth; k0 += 2) {
    const float* row = p.src + k0 * p.ld_src;
    for (int64_t n0 = 0; n0 < p.n; n0 += kPanel) {
      const V::reg x = load_left(row + n0, k0 < p.k ? p.n - n0 : 0);
      const V::reg y = load_left(row + p.ld_src + n0, k0 + 1 < p.k ? p.n - n0 : 0);
      const __m512i high = round_to_bf16(x, y);
      const int64_t at = n0 * depth + k0 * kPanel;
      _mm512_storeu_si512(p.dst + at, _mm512_permutexvar_epi16(pairs, high));
      if (!p.dst_low) continue;
      const __m512i low = round_rest(x, y, high);
      _mm512_storeu_si512(p.dst_low + at, _mm512_permutexvar_epi16(pairs, low));
    }
  }
}
