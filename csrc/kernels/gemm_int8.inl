// Products of uint8 rows and int8 panels in exact int32 sums. Contracts: GemmInt8Args,
// QuantizeRowsArgs in abi.h. A level provides its dot product as `Dot` (dot_*.inl).

#include "kernels/dequantize.inl"
#include "kernels/products.inl"

struct Int8Product {
  using Args = GemmInt8Args;
  static constexpr int kRows = Dot::kRows;
  static constexpr int kPanels = Dot::kPanels;

  template <int ROWS, int PANELS>
  static void tile(const Args& g, int64_t row, int64_t panel) {
    const uint8_t* a = g.a + row * g.lda;
    const int8_t* b = g.b + panel * g.b_panel_stride;
    prefetch_tile<ROWS, PANELS>(g.c + row * g.ldc + panel * kPanel, g.ldc);
    Dot::sums acc[ROWS][PANELS];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 16
      for (int p = 0; p < PANELS; ++p) acc[i][p] = Dot::zero();
    }
    for (int64_t kk = 0; kk < g.k; kk += 4) {
      Dot::weights bv[PANELS];
#pragma GCC unroll 16
      for (int p = 0; p < PANELS; ++p) {
        bv[p] = Dot::load(b + p * g.b_panel_stride + kk * kPanel);
      }
      prefetch_next<PANELS>(reinterpret_cast<const char*>(b + kk * kPanel), g.b_panel_stride);
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i) {
        const Dot::values av = Dot::broadcast(a + i * g.lda + kk);
#pragma GCC unroll 16
        for (int p = 0; p < PANELS; ++p) acc[i][p] = Dot::add(acc[i][p], av, bv[p]);
      }
    }
    int32_t sums[ROWS][PANELS][kPanel];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 16
      for (int p = 0; p < PANELS; ++p) Dot::store(sums[i][p], acc[i][p]);
    }
    // In a loop of its own: with calls among them the accumulators would not stay in registers.
    for (int i = 0; i < ROWS; ++i) {
      for (int p = 0; p < PANELS; ++p) {
        store_dequantized(g, row + i, panel + p, sums[i][p], Dot::kZero);
      }
    }
  }
};

void gemm_int8(const GemmInt8Args& g) { multiply<Int8Product>(g); }
