#include "ops/linear.h"

#include <algorithm>
#include <cstring>

#include "base/math.h"

namespace tokprune {
namespace {

using kernels::Epilogue;
using kernels::GemmArgs;
using kernels::kPanel;

// Block sizes in the order of the loops below, found by measurement. A block of A (kBlockM x
// kBlockK, 288 KB) stays in the second-level cache while pairs of weight panels (48 KB) pass; so do
// the partial sums of one column block (kBlockM x 16 kBlockPanels).
constexpr int64_t kBlockPanels = 24;
constexpr int64_t kBlockM = 192;
constexpr int64_t kBlockK = 384;

// Below this many multiply-adds waking the other threads costs more than it saves.
constexpr int64_t kSerialWork = 1 << 17;

struct Grid {
  int64_t row_parts;
  int64_t column_parts;
};

// Splits C over the threads: by columns if that divides evenly (each thread then reads only its
// own part of the weights), by rows as well where columns alone would leave threads idle.
Grid choose_grid(int64_t threads, int64_t rows, int64_t panels, int64_t row_unit) {
  Grid best{1, threads};
  double best_cost = -1;
  for (int64_t row_parts = 1; row_parts <= threads; ++row_parts) {
    if (threads % row_parts != 0) continue;
    const int64_t column_parts = threads / row_parts;
    const int64_t part_rows = round_up(ceil_div(rows, row_parts), row_unit);
    const int64_t part_panels = round_up(ceil_div(panels, column_parts), 2);
    // Every row part streams its own copy of the weights: worth about 8 rows of arithmetic.
    const double cost = static_cast<double>((part_rows + 8) * part_panels);
    if (best_cost < 0 || cost < best_cost) {
      best_cost = cost;
      best = {row_parts, column_parts};
    }
  }
  return best;
}

struct Block {
  Range rows;
  Range panels;
};

void run_block(const Context& context, const PackedLinear& layer, const LinearArgs& args,
               const Block& block) {
  const kernels::KernelTable& kernels = *context.kernels;
  const int64_t m_total = block.rows.end - block.rows.begin;
  // Few rows: the weights are read once anyway, so stream each panel in one go.
  const int64_t block_k = m_total <= 2 * kernels.gemm_rows ? layer.inputs : kBlockK;
  for (int64_t p0 = block.panels.begin; p0 < block.panels.end; p0 += kBlockPanels) {
    const int64_t p1 = std::min(p0 + kBlockPanels, block.panels.end);
    for (int64_t m0 = block.rows.begin; m0 < block.rows.end; m0 += kBlockM) {
      const int64_t m = std::min(kBlockM, block.rows.end - m0);
      for (int64_t k0 = 0; k0 < layer.inputs; k0 += block_k) {
        const int64_t k = std::min(block_k, layer.inputs - k0);
        GemmArgs gemm{};
        gemm.a = args.src + m0 * args.ld_src + k0;
        gemm.lda = args.ld_src;
        gemm.b = layer.weight.data() + (p0 * layer.inputs + k0) * kPanel;
        gemm.b_panel_stride = layer.inputs * kPanel;
        const int64_t column = (p0 - args.panel_begin) * kPanel;
        gemm.c = args.dst + m0 * args.ld_dst + column;
        gemm.ldc = args.ld_dst;
        gemm.m = m;
        gemm.panels = p1 - p0;
        gemm.k = k;
        gemm.accumulate = k0 > 0;
        gemm.epilogue = k0 + k == layer.inputs ? args.epilogue : Epilogue::kNone;
        gemm.bias = layer.bias.data() + p0 * kPanel;
        gemm.ld_residual = args.residual.ld;
        if (args.residual.data) {
          const int64_t first = args.residual.rows ? 0 : m0;
          gemm.residual = args.residual.data + first * args.residual.ld + column;
          gemm.residual_rows = args.residual.rows ? args.residual.rows + m0 : nullptr;
        }
        kernels.gemm(gemm);
      }
    }
  }
}

}  // namespace

PackedLinear::PackedLinear(int64_t columns_in, int64_t columns_out)
    : inputs(columns_in),
      outputs(round_up(columns_out, kPanel)),
      weight(static_cast<std::size_t>(inputs * outputs)),
      bias(static_cast<std::size_t>(outputs)) {}

void PackedLinear::set(const Context& context, int64_t column, int64_t rows, const float* source,
                       const float* source_bias) {
  const int64_t tiles = ceil_div(rows, kPanel);
  context.pool->for_each(tiles, [&](int64_t tile, int) {
    const int64_t row = tile * kPanel;
    context.kernels->pack_transposed({.src = source + row * inputs,
                                      .ld_src = inputs,
                                      .dst = weight.data() + (column + row) * inputs,
                                      .n = std::min(kPanel, rows - row),
                                      .k = inputs});
  });
  if (source_bias) {
    std::memcpy(bias.data() + column, source_bias, static_cast<std::size_t>(rows) * sizeof(float));
  }
}

void linear(const Context& context, const PackedLinear& layer, const LinearArgs& args) {
  const int64_t panel_end = args.panel_end < 0 ? layer.panels() : args.panel_end;
  const int64_t panels = panel_end - args.panel_begin;
  if (args.rows == 0 || panels == 0) return;
  const int64_t threads = context.pool->size();
  if (threads == 1 || args.rows * panels * kPanel * layer.inputs <= kSerialWork) {
    run_block(context, layer, args, {{0, args.rows}, {args.panel_begin, panel_end}});
    return;
  }
  const Grid grid = choose_grid(threads, args.rows, panels, context.kernels->gemm_rows);
  const int64_t pairs = ceil_div(panels, 2);
  context.pool->run([&](int part) {
    const Range rows = split_range(args.rows, grid.row_parts, part % grid.row_parts);
    const Range pair = split_range(pairs, grid.column_parts, part / grid.row_parts);
    const Range columns = {args.panel_begin + 2 * pair.begin,
                           std::min(args.panel_begin + 2 * pair.end, panel_end)};
    run_block(context, layer, args, {rows, columns});
  });
}

}  // namespace tokprune
