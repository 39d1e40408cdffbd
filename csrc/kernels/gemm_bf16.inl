// Products of bfloat16 rows and panels by VDPBF16PS. Contract: GemmBf16Args in abi.h, without low
// terms: float32 products are faster than three of these.

#include "kernels/products.inl"

// Two values of a row meet two rows of a panel: every element of C is one chain of pairs in
// ascending k. Subnormal operands and sums count as zero.
struct Bf16Product {
  using Args = GemmBf16Args;
  static constexpr int kRows = 12;
  static constexpr int kPanels = 2;

  static __m512bh broadcast(const uint16_t* pair) {
    int32_t word;
    __builtin_memcpy(&word, pair, sizeof(word));
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(word));
  }

  template <int ROWS, int PANELS>
  static void tile(const Args& g, int64_t row, int64_t panel) {
    const uint16_t* a = g.a + row * g.lda;
    const uint16_t* b = g.b + panel * g.b_panel_stride;
    float* c = g.c + row * g.ldc + panel * kPanel;
    prefetch_tile<ROWS, PANELS>(c, g.ldc);
    V::reg acc[ROWS][PANELS];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 16
      for (int p = 0; p < PANELS; ++p) acc[i][p] = V::zero();
    }
    for (int64_t kk = 0; kk < g.k; kk += 2) {
      __m512bh bv[PANELS];
#pragma GCC unroll 16
      for (int p = 0; p < PANELS; ++p) {
        const uint16_t* from = b + p * g.b_panel_stride + kk * kPanel;
        bv[p] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(from));
      }
      prefetch_next<PANELS>(reinterpret_cast<const char*>(b + kk * kPanel),
                            g.b_panel_stride * static_cast<int64_t>(sizeof(uint16_t)));
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i) {
        const __m512bh av = broadcast(a + i * g.lda + kk);
#pragma GCC unroll 16
        for (int p = 0; p < PANELS; ++p) acc[i][p] = _mm512_dpbf16_ps(acc[i][p], bv[p], av);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 16
      for (int p = 0; p < PANELS; ++p) V::store(c + i * g.ldc + p * kPanel, acc[i][p]);
    }
  }
};

void gemm_bf16(const GemmBf16Args& g) { multiply<Bf16Product>(g); }
