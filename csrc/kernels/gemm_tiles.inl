// Products in matrix tiles. Contracts: GemmInt8Args, GemmBf16Args in abi.h. Registers: Tiles in
// tile_registers.inl.
//
// A step is what one tile holds of k: 64 bytes of 16 rows of A, lda apart, and 1 KB of a panel.
//
// Every element of C is one chain of tile products in ascending k. A block of k begins where the
// last one stopped, with unfinished sums parked in C, and a row of a tile sees no other row. So no
// bit depends on rows, panels or blocks.

#include "kernels/dequantize.inl"
#include "kernels/products.inl"

constexpr int64_t kStepBytes = 64;
constexpr int64_t kTileBytes = kTileRows * kStepBytes;
// Tiles of sums: 2 x 2, or 1 x 4 where there is one tile of rows. Two more hold A and two B.
constexpr int64_t kMaxSums = 4;

// Calls body(Index<0>) ... body(Index<N - 1>): tile registers are named by constants.
template <int I>
struct Index {};
template <int N, int I = 0, class Body>
inline void repeat(const Body& body) {
  if constexpr (I < N) {
    body(Index<I>{});
    repeat<N, I + 1>(body);
  }
}

// One product of operand terms: 0 is the operand, 1 its low part.
struct Term {
  int a, b;
};

struct Int8Tiles {
  using Args = GemmInt8Args;
  static constexpr int64_t kBytes = 1;
  static constexpr bool kInteger = true;
  static constexpr int kTerms = 1;
  static constexpr Term kTerm[kTerms] = {{0, 0}};
  static constexpr int kOperands = 1;

  static const void* a(const Args& g, int) { return g.a; }
  static const void* b(const Args& g, int) { return g.b; }
  template <int C, int A, int B>
  static void dot(Tiles& tiles) {
    tiles.template dot_u8s8<C, A, B>();
  }
};

struct Bf16Tiles {
  using Args = GemmBf16Args;
  static constexpr int64_t kBytes = 2;
  static constexpr bool kInteger = false;
  static constexpr int kTerms = 1;
  static constexpr Term kTerm[kTerms] = {{0, 0}};
  static constexpr int kOperands = 1;

  static const void* a(const Args& g, int term) { return term ? g.a_low : g.a; }
  static const void* b(const Args& g, int term) { return term ? g.b_low : g.b; }
  template <int C, int A, int B>
  static void dot(Tiles& tiles) {
    tiles.template dot_bf16<C, A, B>();
  }
};

struct Bf16x3Tiles : Bf16Tiles {
  static constexpr int kTerms = 3;
  static constexpr Term kTerm[kTerms] = {{1, 0}, {0, 0}, {0, 1}};  // each changes one operand
  static constexpr int kOperands = 2;
};

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Operands in bytes.
struct TileOperands {
  const char* a[2];
  int64_t a_stride;  // of a row
  const char* b[2];
  int64_t b_stride;  // of a panel
};

// Where tiles of sums come from or go to: C, or scratch where a tile would leave C.
struct TileSums {
  char* at;
  int64_t stride;
};

struct TileBlock {
  int64_t row, rows;
  int64_t panel, panels;
  int64_t step, steps;
  // While this block is computed, these of the 16 lines of every tile of B of a block to come are
  // brought to the second-level cache.
  int64_t next_panel, next_step;
  int64_t first_line, last_line;
};

// GCC 12 removes some loops that do nothing but __builtin_prefetch.
inline void prefetch(const char* at) { __asm__ volatile("prefetcht1 (%0)" : : "r"(at)); }

template <int OPERANDS, int PANELS>
inline void prefetch_step(const TileOperands& o, int64_t at, int64_t first, int64_t last) {
  repeat<OPERANDS>([&]<int T>(Index<T>) {
    repeat<PANELS>([&]<int P>(Index<P>) {
      const char* tile = o.b[T] + P * o.b_stride + at;
      for (int64_t line = first; line < last; ++line) prefetch(tile + line * kStepBytes);
    });
  });
}

// Not inline: the loop needs all general registers for itself.
template <class Product, int ROWS, int PANELS>
[[gnu::noinline]] void multiply_tiles(Tiles& tiles, const TileOperands& operands,
                                      const TileBlock& block, TileSums from, TileSums to) {
  constexpr int kA = kMaxSums;
  constexpr int kB = kA + 2;
  static_assert(ROWS * PANELS <= kMaxSums && ROWS <= 2);
  const TileOperands o = operands;
  const int64_t row_tile = kTileRows * o.a_stride;

  repeat<ROWS>([&]<int R>(Index<R>) {
    repeat<PANELS>([&]<int P>(Index<P>) {
      if (from.at) {
        const char* sums = from.at + R * kTileRows * from.stride + P * kStepBytes;
        tiles.template load<R * PANELS + P>(sums, from.stride);
      } else {
        tiles.template zero<R * PANELS + P>();
      }
    });
  });

  const int64_t a_row = block.row * o.a_stride;
  const int64_t b_panel = block.panel * o.b_stride;
  const int64_t b_next = block.next_panel * o.b_stride;
  const int64_t first_line = block.first_line;
  const int64_t last_line = block.last_line;
  const int64_t ahead = block.next_step - block.step;
  const int64_t begin = block.step;
  const int64_t end = begin + block.steps;
  for (int64_t step = begin; step < end; ++step) {
    prefetch_step<Product::kOperands, PANELS>(o, b_next + (step + ahead) * kTileBytes, first_line,
                                              last_line);
    repeat<Product::kTerms>([&]<int T>(Index<T>) {
      constexpr Term kNow = Product::kTerm[T];
      constexpr Term kLast = Product::kTerm[T > 0 ? T - 1 : 0];
      if constexpr (T == 0 || kNow.a != kLast.a) {
        const char* a = o.a[kNow.a] + a_row + step * kStepBytes;
        repeat<ROWS>(
            [&]<int R>(Index<R>) { tiles.template load<kA + R>(a + R * row_tile, o.a_stride); });
      }
      const char* b = o.b[kNow.b] + b_panel + step * kTileBytes;
      repeat<PANELS>([&]<int P>(Index<P>) {
        if constexpr (T == 0 || kNow.b != kLast.b || PANELS > 2) {
          tiles.template load<kB + P % 2>(b + P * o.b_stride, kStepBytes);
        }
        repeat<ROWS>([&]<int R>(Index<R>) {
          Product::template dot<R * PANELS + P, kA + R, kB + P % 2>(tiles);
        });
      });
    });
  }

  repeat<ROWS>([&]<int R>(Index<R>) {
    repeat<PANELS>([&]<int P>(Index<P>) {
      char* sums = to.at + R * kTileRows * to.stride + P * kStepBytes;
      tiles.template store<R * PANELS + P>(sums, to.stride);
    });
  });
}

template <class Product>
inline void multiply_block(Tiles& tiles, const TileOperands& o, const TileBlock& block,
                           TileSums from, TileSums to) {
  if (block.rows > kTileRows) {
    return block.panels == 2 ? multiply_tiles<Product, 2, 2>(tiles, o, block, from, to)
                             : multiply_tiles<Product, 2, 1>(tiles, o, block, from, to);
  }
  switch (block.panels) {
    case 1: return multiply_tiles<Product, 1, 1>(tiles, o, block, from, to);
    case 2: return multiply_tiles<Product, 1, 2>(tiles, o, block, from, to);
    case 3: return multiply_tiles<Product, 1, 3>(tiles, o, block, from, to);
    default: return multiply_tiles<Product, 1, 4>(tiles, o, block, from, to);
  }
}

inline void copy_sums(TileSums from, TileSums to, int64_t rows, int64_t panels) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t p = 0; p < panels; ++p) {
      const char* line = from.at + i * from.stride + p * kStepBytes;
      __builtin_memcpy(to.at + i * to.stride + p * kStepBytes, line, kStepBytes);
    }
  }
}

inline void dequantize(const GemmInt8Args& g, const TileBlock& block, TileSums sums) {
  for (int64_t i = 0; i < block.rows; ++i) {
    for (int64_t p = 0; p < block.panels; ++p) {
      const char* at = sums.at + i * sums.stride + p * kStepBytes;
      store_dequantized(g, block.row + i, block.panel + p, reinterpret_cast<const int32_t*>(at), 0);
    }
  }
}

// One block from its parked sums (none in the first step) to the sums it parks or, in the last
// step, to finished values. Tiles that reach below the last row of C go through `scratch`.
template <class Product>
inline void run_block(Tiles& tiles, const typename Product::Args& g, const TileOperands& o,
                      const TileBlock& block, bool last, char* scratch) {
  float* corner = g.c + block.row * g.ldc + block.panel * kPanel;
  const TileSums c = {reinterpret_cast<char*>(corner), g.ldc * static_cast<int64_t>(sizeof(float))};
  const TileSums local = {scratch, block.panels * kStepBytes};
  const bool whole = block.rows % kTileRows == 0;
  const bool convert = last && Product::kInteger;

  TileSums from = {};
  if (block.step > 0) {
    from = whole ? c : local;
    if (!whole) copy_sums(c, local, block.rows, block.panels);
  }
  multiply_block<Product>(tiles, o, block, from, whole && !convert ? c : local);
  if (!whole && !convert) copy_sums(local, c, block.rows, block.panels);
  if (!last) return;
  if constexpr (Product::kInteger) dequantize(g, block, local);
  apply_epilogue(g.epilogue, g.c, g.ldc, block.row, block.rows, block.panel * kPanel,
                 block.panels * kPanel);
}

template <class Product>
inline void multiply_in_tiles(const typename Product::Args& g) {
  if (g.m == 0 || g.panels == 0) return;
  const int64_t bytes = Product::kBytes;
  TileOperands o;
  for (int t = 0; t < Product::kOperands; ++t) {
    o.a[t] = static_cast<const char*>(Product::a(g, t));
    o.b[t] = static_cast<const char*>(Product::b(g, t));
  }
  o.a_stride = g.lda * bytes;
  o.b_stride = g.b_panel_stride * bytes;

  // Two panels of a block of k take 16 KB and stay in the first-level cache while all rows pass.
  // One tile of rows uses weights once: there only the number of independent sums counts.
  constexpr int64_t kBlockSteps = 8 / Product::kOperands;
  const int64_t steps = g.k * bytes / kStepBytes;
  const int64_t group = g.m <= kTileRows ? kMaxSums : 2;
  const int64_t strip = 2 * kTileRows;
  const int64_t strips = (g.m + strip - 1) / strip;
  const int64_t lines = (kTileRows + strips - 1) / strips;

  alignas(64) char scratch[kMaxSums * kTileBytes];
  Tiles tiles;
  TileBlock block;
  block.step = 0;
  do {
    const int64_t left = steps - block.step;
    const bool last = left <= kBlockSteps;
    block.steps = last ? left : kBlockSteps;
    for (block.panel = 0; block.panel < g.panels; block.panel += group) {
      block.panels = min(group, g.panels - block.panel);
      block.next_panel = block.panel + block.panels;
      block.next_step = block.step;
      if (block.next_panel == g.panels) {  // after the last block: the panels of a next call
        if (!last) block.next_panel = 0;
        block.next_step = last ? 0 : block.step + kBlockSteps;
      }
      for (int64_t s = 0; s < strips; ++s) {
        block.row = s * strip;
        block.rows = min(strip, g.m - block.row);
        block.first_line = min(s * lines, kTileRows);
        block.last_line = min((s + 1) * lines, kTileRows);
        run_block<Product>(tiles, g, o, block, last, scratch);
      }
    }
    block.step += kBlockSteps;
  } while (block.step < steps);
}

void gemm_int8(const GemmInt8Args& g) { multiply_in_tiles<Int8Tiles>(g); }

void gemm_bf16(const GemmBf16Args& g) {
  if (g.a_low) {
    multiply_in_tiles<Bf16x3Tiles>(g);
  } else {
    multiply_in_tiles<Bf16Tiles>(g);
  }
}
