// C (+)= A B on packed panels, then an epilogue. Contract: GemmArgs in abi.h.

constexpr int kVectorsPerPanel = static_cast<int>(kPanel) / V::kLanes;

// One register tile: ROWS x (16 * PANELS) accumulators stay in registers for the whole of k.
template <int ROWS, int PANELS>
inline void gemm_tile(const float* a, int64_t lda, const float* b, int64_t b_panel_stride, float* c,
                      int64_t ldc, int64_t k, bool accumulate) {
  constexpr int kVectors = PANELS * kVectorsPerPanel;
  V::reg acc[ROWS][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      acc[i][v] = accumulate ? V::load(c + i * ldc + v * V::kLanes) : V::zero();
    }
  }
  for (int64_t kk = 0; kk < k; ++kk) {
    V::reg bv[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const int panel = v / kVectorsPerPanel;
      const int lane = (v % kVectorsPerPanel) * V::kLanes;
      bv[v] = V::load(b + panel * b_panel_stride + kk * kPanel + lane);
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const V::reg av = V::set1(a[i * lda + kk]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) acc[i][v] = V::fma(av, bv[v], acc[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) V::store(c + i * ldc + v * V::kLanes, acc[i][v]);
  }
}

using TileFunction = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t,
                              int64_t, bool);

// Tile functions by row count: kTiles<P>.of[r] computes r rows of P panels.
template <int PANELS, int ROWS = kGemmRows>
struct TileList : TileList<PANELS, ROWS - 1> {
  constexpr TileList() { this->of[ROWS] = gemm_tile<ROWS, PANELS>; }
};
template <int PANELS>
struct TileList<PANELS, 0> {
  TileFunction of[kGemmRows + 1] = {};
};
template <int PANELS>
constexpr TileList<PANELS> kTiles;

// Visits every vector of the block C[rows, 16 * panels].
template <class Visit>
inline void for_each_vector(const GemmArgs& g, int64_t row, int64_t rows, int64_t column,
                            int64_t columns, const Visit& visit) {
  for (int64_t i = row; i < row + rows; ++i) {
    for (int64_t j = column; j < column + columns; j += V::kLanes) {
      float* c = g.c + i * g.ldc + j;
      V::store(c, visit(V::load(c), i, j));
    }
  }
}

inline void apply_epilogue(const GemmArgs& g, int64_t row, int64_t rows, int64_t column,
                           int64_t columns) {
  switch (g.epilogue) {
    case Epilogue::kNone:
    case Epilogue::kCount: return;
    case Epilogue::kRowScale:
      return for_each_vector(g, row, rows, column, columns, [&](V::reg x, int64_t i, int64_t) {
        return V::mul(x, V::set1(g.row_scale[i]));
      });
    case Epilogue::kBias:
      return for_each_vector(g, row, rows, column, columns, [&](V::reg x, int64_t, int64_t j) {
        return V::add(x, V::load(g.bias + j));
      });
    case Epilogue::kBiasResidual:
      return for_each_vector(g, row, rows, column, columns, [&](V::reg x, int64_t i, int64_t j) {
        const int64_t from = g.residual_rows ? g.residual_rows[i] : i;
        return V::add(V::add(x, V::load(g.bias + j)),
                      V::load(g.residual + from * g.ld_residual + j));
      });
#define TOKPRUNE_ACTIVATION(name, hf_names)                                                   \
  case Epilogue::kBias_##name:                                                                \
    return for_each_vector(g, row, rows, column, columns, [&](V::reg x, int64_t, int64_t j) { \
      return name(V::add(x, V::load(g.bias + j)));                                            \
    });
#include "kernels/manifest.inc"
  }
}

template <int PANELS>
inline void gemm_panels(const GemmArgs& g, int64_t panel) {
  const float* b = g.b + panel * g.b_panel_stride;
  const int64_t column = panel * kPanel;
  // Even strips (13 rows = 7 + 6) instead of full ones and a poor remainder.
  const int64_t strips = (g.m + kGemmRows - 1) / kGemmRows;
  for (int64_t s = 0; s < strips; ++s) {
    const int64_t row = g.m * s / strips;
    const int64_t rows = g.m * (s + 1) / strips - row;
    kTiles<PANELS>.of[rows](g.a + row * g.lda, g.lda, b, g.b_panel_stride,
                            g.c + row * g.ldc + column, g.ldc, g.k, g.accumulate);
    apply_epilogue(g, row, rows, column, PANELS * kPanel);
  }
}

void gemm(const GemmArgs& g) {
  int64_t panel = 0;
  for (; panel + kGemmPanels <= g.panels; panel += kGemmPanels) gemm_panels<kGemmPanels>(g, panel);
  for (; panel < g.panels; ++panel) gemm_panels<1>(g, panel);
}
