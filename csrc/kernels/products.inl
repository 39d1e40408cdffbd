#pragma once

// What all products share: cutting C into register tiles and finishing them.
//
// Each operand type is a "product": the size of its register tile and the function that computes
// one tile.

#include "kernels/activations.inl"

// Visits every vector of the block C[rows, columns].
template <class Visit>
inline void for_each_vector(float* c, int64_t ldc, int64_t row, int64_t rows, int64_t column,
                            int64_t columns, const Visit& visit) {
  for (int64_t i = row; i < row + rows; ++i) {
    for (int64_t j = column; j < column + columns; j += V::kLanes) {
      float* at = c + i * ldc + j;
      V::store(at, visit(V::load(at), i, j));
    }
  }
}

inline void apply_epilogue(const EpilogueArgs& e, float* c, int64_t ldc, int64_t row, int64_t rows,
                           int64_t column, int64_t columns) {
  const auto each = [&](const auto& visit) {
    for_each_vector(c, ldc, row, rows, column, columns, visit);
  };
  switch (e.kind) {
    case Epilogue::kNone:
    case Epilogue::kCount: return;
    case Epilogue::kRowScale:
      return each([&](V::reg x, int64_t i, int64_t) { return V::mul(x, V::set1(e.row_scale[i])); });
    case Epilogue::kBias:
      return each([&](V::reg x, int64_t, int64_t j) { return V::add(x, V::load(e.bias + j)); });
    case Epilogue::kBiasResidual:
      return each([&](V::reg x, int64_t i, int64_t j) {
        const int64_t from = e.residual_rows ? e.residual_rows[i] : i;
        return V::add(V::add(x, V::load(e.bias + j)),
                      V::load(e.residual + from * e.ld_residual + j));
      });
#define TOKPRUNE_ACTIVATION(name, hf_names) \
  case Epilogue::kBias_##name:              \
    return each([&](V::reg x, int64_t, int64_t j) { return name(V::add(x, V::load(e.bias + j))); });
#include "kernels/manifest.inc"
  }
}

// Asks for the lines of C that a tile will write once its sums are complete.
template <int ROWS, int PANELS>
inline void prefetch_tile(const float* c, int64_t ldc) {
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 16
    for (int p = 0; p < PANELS; ++p) __builtin_prefetch(c + i * ldc + p * kPanel, 1);
  }
}

// Asks for the line at `weights` of the panels that follow: they arrive while these are in use.
template <int PANELS>
inline void prefetch_next(const char* weights, int64_t panel_bytes) {
#pragma GCC unroll 16
  for (int p = PANELS; p < 2 * PANELS; ++p) __builtin_prefetch(weights + p * panel_bytes, 0, 2);
}

// Tile functions by row count: kTiles<Product, P>.of[r] computes r rows of P panels.
template <class Product, int PANELS, int ROWS = Product::kRows>
struct TileList : TileList<Product, PANELS, ROWS - 1> {
  constexpr TileList() { this->of[ROWS] = Product::template tile<ROWS, PANELS>; }
};
template <class Product, int PANELS>
struct TileList<Product, PANELS, 0> {
  void (*of[Product::kRows + 1])(const typename Product::Args&, int64_t row, int64_t panel) = {};
};
template <class Product, int PANELS>
constexpr TileList<Product, PANELS> kTiles;

template <class Product, int PANELS>
inline void multiply_panels(const typename Product::Args& g, int64_t panel) {
  // Even strips (13 rows = 7 + 6) instead of full ones and a poor remainder.
  const int64_t strips = (g.m + Product::kRows - 1) / Product::kRows;
  for (int64_t s = 0; s < strips; ++s) {
    const int64_t row = g.m * s / strips;
    const int64_t rows = g.m * (s + 1) / strips - row;
    kTiles<Product, PANELS>.of[rows](g, row, panel);
    apply_epilogue(g.epilogue, g.c, g.ldc, row, rows, panel * kPanel, PANELS * kPanel);
  }
}

template <class Product>
inline void multiply(const typename Product::Args& g) {
  constexpr int kStep = Product::kPanels;
  int64_t panel = 0;
  for (; panel + kStep <= g.panels; panel += kStep) multiply_panels<Product, kStep>(g, panel);
  for (; panel < g.panels; ++panel) multiply_panels<Product, 1>(g, panel);
}
