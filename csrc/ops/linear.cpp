#include "ops/linear.h"

#include <algorithm>
#include <cstring>

#include "base/math.h"

namespace tokprune {
namespace {

using kernels::Epilogue;
using kernels::EpilogueArgs;
using kernels::kPanel;

// Block sizes of products with float32 rows, in the order of the loops below, found by measurement.
// A block of A (kBlockM x kBlockK, 288 KB) stays in the second-level cache while pairs of weight
// panels (48 KB) pass; so do the partial sums of one column block (kBlockM x 16 kBlockPanels).
constexpr int64_t kBlockPanels = 24;
constexpr int64_t kBlockM = 192;
constexpr int64_t kBlockK = 384;

// Bytes and rows of a block of converted activations: it stays in the second-level cache while the
// weights pass.
constexpr int64_t kOperandBytes = int64_t{768} << 10;
constexpr int64_t kOperandRows = 384;

// Below this many multiply-adds waking the other threads costs more than it saves.
constexpr int64_t kSerialWork = 1 << 17;

struct Block {
  Range rows;
  Range panels;
};

// How the cost of a part of C grows, in rows and panels of multiply-adds.
struct Cost {
  int64_t weight_rows;     // reading a panel of weights is worth so many rows of arithmetic
  int64_t operand_panels;  // converting a row of activations is worth so many panels
};

Cost cost_of(Precision precision) {
  switch (precision) {
    case Precision::kFp32:
    case Precision::kBf16x3: return {8, 0};
    case Precision::kBf16: return {6, 0};
    case Precision::kInt8: break;
  }
  return {12, 5};
}

int64_t operand_size(Precision precision) {
  switch (precision) {
    case Precision::kFp32: return 0;
    case Precision::kBf16: return 2;
    case Precision::kBf16x3: return 4;
    case Precision::kInt8: break;
  }
  return 1;
}

struct Grid {
  int64_t row_parts;
  int64_t column_parts;
};

// Rows in which a product computes at full speed.
int64_t row_unit(const kernels::KernelTable& kernels, Precision precision) {
  const bool tiles = kernels.gemm_bf16 && precision != Precision::kFp32;
  return tiles ? 2 * kernels::kTileRows : kernels.gemm_rows;
}

// Part `index` of `parts` of the rows, in whole units.
Range split_rows(int64_t rows, int64_t unit, int64_t parts, int64_t index) {
  const Range units = split_range(ceil_div(rows, unit), parts, index);
  return {std::min(rows, units.begin * unit), std::min(rows, units.end * unit)};
}

// Splits C over the threads: by columns if that divides evenly (each thread then reads only its
// own part of the weights), by rows as well where columns alone would leave threads idle.
Grid choose_grid(int64_t threads, int64_t rows, int64_t panels, int64_t unit, Cost price) {
  Grid best{1, threads};
  int64_t best_cost = -1;
  for (int64_t row_parts = 1; row_parts <= threads; ++row_parts) {
    if (threads % row_parts != 0) continue;
    const int64_t column_parts = threads / row_parts;
    const int64_t part_rows = round_up(ceil_div(rows, row_parts), unit);
    const int64_t part_panels = round_up(ceil_div(panels, column_parts), 2);
    const int64_t cost = (part_rows + price.weight_rows) * (part_panels + price.operand_panels);
    if (best_cost < 0 || cost < best_cost) {
      best_cost = cost;
      best = {row_parts, column_parts};
    }
  }
  return best;
}

EpilogueArgs epilogue_of(const PackedLinear& layer, const LinearArgs& args, int64_t row,
                         int64_t panel) {
  EpilogueArgs epilogue{};
  epilogue.kind = args.epilogue;
  epilogue.bias = layer.bias.data() + panel * kPanel;
  epilogue.ld_residual = args.residual.ld;
  if (args.residual.data) {
    const int64_t first = args.residual.rows ? 0 : row;
    epilogue.residual =
        args.residual.data + first * args.residual.ld + (panel - args.panel_begin) * kPanel;
    epilogue.residual_rows = args.residual.rows ? args.residual.rows + row : nullptr;
  }
  return epilogue;
}

float* destination(const LinearArgs& args, int64_t row, int64_t panel) {
  return args.dst + row * args.ld_dst + (panel - args.panel_begin) * kPanel;
}

// Products with float32 rows: the activations are read where they lie.
template <class Weight, class Gemm>
void run_float(const Context& context, const PackedLinear& layer, const LinearArgs& args,
               const Block& block, const Gemm& multiply) {
  const int64_t m_total = block.rows.end - block.rows.begin;
  // Few rows: the weights are read once anyway, so stream each panel in one go.
  const bool stream = m_total <= 2 * context.kernels->gemm_rows;
  const int64_t block_k = stream ? layer.inputs : kBlockK;
  for (int64_t p0 = block.panels.begin; p0 < block.panels.end; p0 += kBlockPanels) {
    const int64_t p1 = std::min(p0 + kBlockPanels, block.panels.end);
    for (int64_t m0 = block.rows.begin; m0 < block.rows.end; m0 += kBlockM) {
      const int64_t m = std::min(kBlockM, block.rows.end - m0);
      for (int64_t k0 = 0; k0 < layer.inputs; k0 += block_k) {
        const int64_t k = std::min(block_k, layer.inputs - k0);
        kernels::GemmOf<Weight> gemm{};
        gemm.a = args.src + m0 * args.ld_src + k0;
        gemm.lda = args.ld_src;
        gemm.b = layer.panel<Weight>(layer.weight, p0) + k0 * kPanel;
        gemm.b_panel_stride = layer.panel_stride();
        gemm.c = destination(args, m0, p0);
        gemm.ldc = args.ld_dst;
        gemm.m = m;
        gemm.panels = p1 - p0;
        gemm.k = k;
        gemm.accumulate = k0 > 0;
        gemm.epilogue = epilogue_of(layer, args, m0, p0);
        if (k0 + k < layer.inputs) gemm.epilogue.kind = Epilogue::kNone;
        multiply(gemm);
      }
    }
  }
}

// Products with converted rows: a block of activations is rounded once, convert(row, rows), and
// meets every panel, multiply(row, rows, first panel, panels).
template <class Convert, class Multiply>
void run_converted(const Context& context, const PackedLinear& layer, const Block& block,
                   const Convert& convert, const Multiply& multiply) {
  const int64_t rows = block.rows.end - block.rows.begin;
  const int64_t blocks = ceil_div(rows, OperandScratch::rows_that_fit(layer));
  const int64_t unit = row_unit(*context.kernels, layer.precision);
  for (int64_t i = 0; i < blocks; ++i) {
    const Range part = split_rows(rows, unit, blocks, i);
    const int64_t m0 = block.rows.begin + part.begin;
    const int64_t m = part.end - part.begin;
    convert(m0, m);
    for (int64_t p0 = block.panels.begin; p0 < block.panels.end; p0 += kBlockPanels) {
      multiply(m0, m, p0, std::min(kBlockPanels, block.panels.end - p0));
    }
  }
}

void run_int8(const Context& context, const PackedLinear& layer, const LinearArgs& args,
              const Block& block, const OperandScratch& scratch) {
  auto* values = reinterpret_cast<uint8_t*>(scratch.values());
  const auto convert = [&](int64_t m0, int64_t m) {
    context.kernels->quantize_rows({.src = args.src + m0 * args.ld_src,
                                    .ld_src = args.ld_src,
                                    .dst = values,
                                    .ld_dst = layer.depth,
                                    .scale = scratch.scale(),
                                    .zero = scratch.zero(),
                                    .rows = m,
                                    .cols = layer.inputs});
  };
  run_converted(context, layer, block, convert,
                [&](int64_t m0, int64_t m, int64_t p0, int64_t panels) {
                  context.kernels->gemm_int8({.a = values,
                                              .lda = layer.depth,
                                              .a_scale = scratch.scale(),
                                              .a_zero = scratch.zero(),
                                              .b = layer.panel<int8_t>(layer.weight, p0),
                                              .b_panel_stride = layer.panel_stride(),
                                              .b_scale = layer.scale.data() + p0 * kPanel,
                                              .b_sum = layer.column_sum.data() + p0 * kPanel,
                                              .c = destination(args, m0, p0),
                                              .ldc = args.ld_dst,
                                              .m = m,
                                              .panels = panels,
                                              .k = layer.depth,
                                              .epilogue = epilogue_of(layer, args, m0, p0)});
                });
}

void run_bf16(const Context& context, const PackedLinear& layer, const LinearArgs& args,
              const Block& block, const OperandScratch& scratch) {
  const bool split = layer.precision == Precision::kBf16x3;
  auto* values = reinterpret_cast<uint16_t*>(scratch.values());
  uint16_t* low = split ? values + OperandScratch::rows_that_fit(layer) * layer.depth : nullptr;
  const auto convert = [&](int64_t m0, int64_t m) {
    context.kernels->round_rows({.src = args.src + m0 * args.ld_src,
                                 .ld_src = args.ld_src,
                                 .dst = values,
                                 .dst_low = low,
                                 .ld_dst = layer.depth,
                                 .rows = m,
                                 .cols = layer.inputs});
  };
  run_converted(context, layer, block, convert,
                [&](int64_t m0, int64_t m, int64_t p0, int64_t panels) {
                  context.kernels->gemm_bf16(
                      {.a = values,
                       .a_low = low,
                       .lda = layer.depth,
                       .b = layer.panel<uint16_t>(layer.weight, p0),
                       .b_low = split ? layer.panel<uint16_t>(layer.weight_low, p0) : nullptr,
                       .b_panel_stride = layer.panel_stride(),
                       .c = destination(args, m0, p0),
                       .ldc = args.ld_dst,
                       .m = m,
                       .panels = panels,
                       .k = layer.depth,
                       .epilogue = epilogue_of(layer, args, m0, p0)});
                });
}

void run_block(const Context& context, const PackedLinear& layer, const LinearArgs& args,
               const Block& block, int part) {
  const kernels::KernelTable& kernels = *context.kernels;
  switch (layer.precision) {
    case Precision::kFp32: return run_float<float>(context, layer, args, block, kernels.gemm);
    case Precision::kInt8: return run_int8(context, layer, args, block, args.operands[part]);
    case Precision::kBf16:
      if (kernels.gemm_bf16) break;
      return run_float<uint16_t>(context, layer, args, block, kernels.gemm_bf16_weight);
    case Precision::kBf16x3: break;
  }
  run_bf16(context, layer, args, block, args.operands[part]);
}

}  // namespace

OperandScratch::OperandScratch(Precision precision, int64_t max_inputs) {
  if (precision == Precision::kFp32) return;
  const int64_t depth = round_up(max_inputs, kernels::kInt8Depth);
  const int64_t least = kernels::kTileRows * depth * operand_size(precision);
  values_ = AlignedArray<std::byte>(static_cast<std::size_t>(std::max(kOperandBytes, least)));
  scale_ = AlignedArray<float>(kOperandRows);
  zero_ = AlignedArray<int32_t>(kOperandRows);
}

int64_t OperandScratch::rows_that_fit(const PackedLinear& layer) {
  const int64_t rows = kOperandBytes / (layer.depth * operand_size(layer.precision));
  return std::clamp(rows / kernels::kTileRows * kernels::kTileRows, kernels::kTileRows,
                    kOperandRows);
}

void linear(const Context& context, const PackedLinear& layer, const LinearArgs& args) {
  const int64_t panel_end = args.panel_end < 0 ? layer.panels() : args.panel_end;
  const int64_t panels = panel_end - args.panel_begin;
  if (args.rows == 0 || panels == 0) return;
  const int64_t threads = context.pool->size();
  if (threads == 1 || args.rows * panels * kPanel * layer.inputs <= kSerialWork) {
    run_block(context, layer, args, {{0, args.rows}, {args.panel_begin, panel_end}}, 0);
    return;
  }
  const int64_t unit = row_unit(*context.kernels, layer.precision);
  const Grid grid = choose_grid(threads, args.rows, panels, unit, cost_of(layer.precision));
  const int64_t pairs = ceil_div(panels, 2);
  context.pool->run([&](int part) {
    const Range rows = split_rows(args.rows, unit, grid.row_parts, part % grid.row_parts);
    const Range pair = split_range(pairs, grid.column_parts, part / grid.row_parts);
    const Range columns = {args.panel_begin + 2 * pair.begin,
                           std::min(args.panel_begin + 2 * pair.end, panel_end)};
    if (rows.begin < rows.end && columns.begin < columns.end)
      run_block(context, layer, args, {rows, columns}, part);
  });
}

}  // namespace tokprune
