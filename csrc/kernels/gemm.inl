// C (+)= A B on float32 rows and packed panels. Contracts: GemmArgs, GemmBf16WeightArgs in abi.h.

#include "kernels/products.inl"

constexpr int kVectorsPerPanel = static_cast<int>(kPanel) / V::kLanes;

// float32 sums of float32 rows and panels of Weight: ROWS x (16 * PANELS) accumulators stay in
// registers for the whole of k.
template <class Weight>
struct FloatProduct {
  using Args = GemmOf<Weight>;
  static constexpr int kRows = kGemmRows;
  static constexpr int kPanels = kGemmPanels;

  // Vector v of inner index kk: two inner indices share the words of a bfloat16 panel.
  template <int PARITY>
  static V::reg weight(const float* b, int64_t kk) {
    return V::load(b + kk * kPanel);
  }
  template <int PARITY>
  static V::reg weight(const uint16_t* b, int64_t kk) {
    return V::template load_bf16<PARITY>(b + kk / 2 * 2 * kPanel);
  }
  static constexpr int kStride = sizeof(Weight) == sizeof(float) ? V::kLanes : 2 * V::kLanes;

  template <int ROWS, int VECTORS, int PARITY>
  static void step(const Args& g, const float* a, const Weight* b, int64_t kk,
                   V::reg (&acc)[ROWS][VECTORS]) {
    V::reg bv[VECTORS];
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) {
      const Weight* from =
          b + v / kVectorsPerPanel * g.b_panel_stride + v % kVectorsPerPanel * kStride;
      bv[v] = weight<PARITY>(from, kk);
    }
    prefetch_next<VECTORS / kVectorsPerPanel>(
        reinterpret_cast<const char*>(b + kk * kPanel),
        g.b_panel_stride * static_cast<int64_t>(sizeof(Weight)));
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const V::reg av = V::set1(a[i * g.lda + kk]);
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) acc[i][v] = V::fma(av, bv[v], acc[i][v]);
    }
  }

  template <int ROWS, int PANELS>
  static void tile(const Args& g, int64_t row, int64_t panel) {
    constexpr int kVectors = PANELS * kVectorsPerPanel;
    const float* a = g.a + row * g.lda;
    const Weight* b = g.b + panel * g.b_panel_stride;
    float* c = g.c + row * g.ldc + panel * kPanel;
    prefetch_tile<ROWS, PANELS>(c, g.ldc);
    V::reg acc[ROWS][kVectors];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        acc[i][v] = g.accumulate ? V::load(c + i * g.ldc + v * V::kLanes) : V::zero();
      }
    }
    int64_t kk = 0;
    for (; kk + 2 <= g.k; kk += 2) {
      step<ROWS, kVectors, 0>(g, a, b, kk, acc);
      step<ROWS, kVectors, 1>(g, a, b, kk + 1, acc);
    }
    if (kk < g.k) step<ROWS, kVectors, 0>(g, a, b, kk, acc);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) V::store(c + i * g.ldc + v * V::kLanes, acc[i][v]);
    }
  }
};

void gemm(const GemmArgs& g) { multiply<FloatProduct<float>>(g); }

void gemm_bf16_weight(const GemmBf16WeightArgs& g) { multiply<FloatProduct<uint16_t>>(g); }
