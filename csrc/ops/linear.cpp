#include "ops/linear.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <span>

#include "base/math.h"

namespace tokprune {
namespace {

using kernels::Epilogue;
using kernels::EpilogueArgs;
using kernels::kPanel;

// Block sizes of products with float32 rows, found by measurement. A block of A (kBlockM x kBlockK,
// 288 KB) stays in the second-level cache while pairs of weight panels (48 KB) pass; so do the
// partial sums of a group of panels (kBlockM x 16 kBlockPanels).
constexpr int64_t kBlockPanels = 24;
constexpr int64_t kBlockM = 192;
constexpr int64_t kBlockK = 384;

// Bytes and rows of a block of converted activations: it stays in the second-level cache while the
// weights pass.
constexpr int64_t kOperandBytes = int64_t{768} << 10;
constexpr int64_t kOperandRows = 384;
constexpr int64_t kLeastOperandRows = 2 * kernels::kTileRows;  // the largest row_unit

// Below this many multiply-adds waking the other threads costs more than it saves.
constexpr int64_t kSerialWork = 1 << 17;

// Pieces of a share, at least, so that little is left to wait for when one thread is held up.
constexpr int64_t kPieces = 4;

struct Block {
  Range rows;
  Range panels;
};

// The part of C that a thread begins with: blocks of rows times groups of panels, counted block by
// block. Whoever runs out of pieces takes them from other shares.
struct alignas(64) Share {
  Block block;
  int64_t row_blocks = 0;
  int64_t groups = 0;
  std::atomic<int64_t> next{0};
};

// Shares live on the stack; with more threads than this, several begin with the same one.
constexpr std::size_t kMostShares = 32;

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
  return kernels.tiles && precision != Precision::kFp32 ? 2 * kernels::kTileRows
                                                        : kernels.gemm_rows;
}

// Part `index` of `parts` of a range, in whole units.
Range split_units(Range range, int64_t unit, int64_t parts, int64_t index) {
  const Range units = split_range(ceil_div(range.size(), unit), parts, index);
  return {std::min(range.end, range.begin + units.begin * unit),
          std::min(range.end, range.begin + units.end * unit)};
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

// The second bf16 terms of converted rows, or null.
uint16_t* low_terms(const PackedLinear& layer, const OperandScratch& scratch) {
  if (layer.precision != Precision::kBf16x3) return nullptr;
  return scratch.values<uint16_t>() + OperandScratch::rows_that_fit(layer) * layer.depth;
}

float* destination(const LinearArgs& args, int64_t row, int64_t panel) {
  return args.dst + row * args.ld_dst + (panel - args.panel_begin) * kPanel;
}

// Products with float32 rows: the activations are read where they lie.
template <class Weight, class Gemm>
void run_float(const Context& context, const PackedLinear& layer, const LinearArgs& args,
               const Block& block, const Gemm& multiply) {
  const auto [m0, m1] = block.rows;
  const auto [p0, p1] = block.panels;
  // Few rows: the weights are read once anyway, so stream each panel in one go.
  const bool stream = m1 - m0 <= 2 * context.kernels->gemm_rows;
  const int64_t block_k = stream ? layer.inputs : kBlockK;
  for (int64_t k0 = 0; k0 < layer.inputs; k0 += block_k) {
    const int64_t k = std::min(block_k, layer.inputs - k0);
    kernels::GemmOf<Weight> gemm{};
    gemm.a = args.src + m0 * args.ld_src + k0;
    gemm.lda = args.ld_src;
    gemm.b = layer.panel<Weight>(layer.weight, p0) + k0 * kPanel;
    gemm.b_panel_stride = layer.panel_stride();
    gemm.c = destination(args, m0, p0);
    gemm.ldc = args.ld_dst;
    gemm.m = m1 - m0;
    gemm.panels = p1 - p0;
    gemm.k = k;
    gemm.accumulate = k0 > 0;
    gemm.epilogue = epilogue_of(layer, args, m0, p0);
    if (k0 + k < layer.inputs) gemm.epilogue.kind = Epilogue::kNone;
    multiply(gemm);
  }
}

// Rounds a block of activations into the operand type of the layer's product.
void convert_rows(const Context& context, const PackedLinear& layer, const LinearArgs& args,
                  Range rows, const OperandScratch& scratch) {
  const float* src = args.src + rows.begin * args.ld_src;
  if (layer.precision == Precision::kInt8) {
    return context.kernels->quantize_rows({.src = src,
                                           .ld_src = args.ld_src,
                                           .dst = scratch.values<uint8_t>(),
                                           .ld_dst = layer.depth,
                                           .scale = scratch.scale(),
                                           .zero = scratch.zero(),
                                           .rows = rows.size(),
                                           .cols = layer.inputs});
  }
  context.kernels->round_rows({.src = src,
                               .ld_src = args.ld_src,
                               .dst = scratch.values<uint16_t>(),
                               .dst_low = low_terms(layer, scratch),
                               .ld_dst = layer.depth,
                               .rows = rows.size(),
                               .cols = layer.inputs});
}

// Products with converted rows.
void run_converted(const Context& context, const PackedLinear& layer, const LinearArgs& args,
                   const Block& block, const OperandScratch& scratch) {
  const auto [m0, m1] = block.rows;
  const auto [p0, p1] = block.panels;
  if (layer.precision == Precision::kInt8) {
    return context.kernels->gemm_int8({.a = scratch.values<uint8_t>(),
                                       .lda = layer.depth,
                                       .a_scale = scratch.scale(),
                                       .a_zero = scratch.zero(),
                                       .b = layer.panel<int8_t>(layer.weight, p0),
                                       .b_panel_stride = layer.panel_stride(),
                                       .b_scale = layer.scale.data() + p0 * kPanel,
                                       .b_sum = layer.column_sum.data() + p0 * kPanel,
                                       .c = destination(args, m0, p0),
                                       .ldc = args.ld_dst,
                                       .m = m1 - m0,
                                       .panels = p1 - p0,
                                       .k = layer.depth,
                                       .epilogue = epilogue_of(layer, args, m0, p0)});
  }
  const uint16_t* low = low_terms(layer, scratch);
  context.kernels->gemm_bf16({.a = scratch.values<uint16_t>(),
                              .a_low = low,
                              .lda = layer.depth,
                              .b = layer.panel<uint16_t>(layer.weight, p0),
                              .b_low = low ? layer.panel<uint16_t>(layer.weight_low, p0) : nullptr,
                              .b_panel_stride = layer.panel_stride(),
                              .c = destination(args, m0, p0),
                              .ldc = args.ld_dst,
                              .m = m1 - m0,
                              .panels = p1 - p0,
                              .k = layer.depth,
                              .epilogue = epilogue_of(layer, args, m0, p0)});
}

// Whether a layer's product reads activations in another type than float32.
bool converts(const kernels::KernelTable& kernels, const PackedLinear& layer) {
  switch (layer.precision) {
    case Precision::kInt8:
    case Precision::kBf16x3: return true;
    case Precision::kBf16: return kernels.gemm_bf16 != nullptr;
    case Precision::kFp32: break;
  }
  return false;
}

// What one thread does: the pieces of its own share, then what others have left. A converted block
// of rows serves all pieces that come from it one after the other.
void run_pieces(const Context& context, const PackedLinear& layer, const LinearArgs& args,
                std::span<Share> shares, int part) {
  const kernels::KernelTable& kernels = *context.kernels;
  const bool convert = converts(kernels, layer);
  const int64_t unit = row_unit(kernels, layer.precision);
  Range converted{};
  const auto run = [&](const Block& piece) {
    if (convert) {
      if (piece.rows != converted) {
        convert_rows(context, layer, args, piece.rows, args.operands[part]);
        converted = piece.rows;
      }
      return run_converted(context, layer, args, piece, args.operands[part]);
    }
    if (layer.precision == Precision::kBf16) {
      return run_float<uint16_t>(context, layer, args, piece, kernels.gemm_bf16_weight);
    }
    run_float<float>(context, layer, args, piece, kernels.gemm);
  };
  for (std::size_t i = 0; i < shares.size(); ++i) {
    Share& share = shares[(static_cast<std::size_t>(part) + i) % shares.size()];
    const int64_t pieces = share.row_blocks * share.groups;
    for (int64_t next; (next = share.next.fetch_add(1, std::memory_order_relaxed)) < pieces;) {
      // Neighbouring pieces share what is dear to fetch: converted rows, or else weights.
      const int64_t row = convert ? next / share.groups : next % share.row_blocks;
      const int64_t group = convert ? next % share.groups : next / share.row_blocks;
      run({split_units(share.block.rows, unit, share.row_blocks, row),
           split_units(share.block.panels, 2, share.groups, group)});
    }
  }
}

// Cuts a share into pieces: blocks of up to most_units units of rows, groups of panels that fit the
// cache, and more groups if that leaves too few pieces to pass to other threads.
void cut_share(Share& share, int64_t unit, int64_t most_units, bool alone) {
  const int64_t panels = share.block.panels.size();
  share.row_blocks = ceil_div(ceil_div(share.block.rows.size(), unit), most_units);
  share.groups = ceil_div(panels, kBlockPanels);
  if (!alone && share.row_blocks > 0) {
    const int64_t wanted = ceil_div(kPieces, share.row_blocks);
    share.groups = std::max(share.groups, std::min(wanted, ceil_div(panels, 2)));
  }
}

}  // namespace

OperandScratch::OperandScratch(Precision precision, int64_t max_inputs) {
  if (precision == Precision::kFp32) return;
  const int64_t depth = round_up(max_inputs, kernels::kInt8Depth);
  const int64_t least = kLeastOperandRows * depth * operand_size(precision);
  values_ = AlignedArray<std::byte>(static_cast<std::size_t>(std::max(kOperandBytes, least)));
  scale_ = AlignedArray<float>(kOperandRows);
  zero_ = AlignedArray<int32_t>(kOperandRows);
}

int64_t OperandScratch::rows_that_fit(const PackedLinear& layer) {
  const int64_t rows = kOperandBytes / (layer.depth * operand_size(layer.precision));
  return std::clamp(rows / kernels::kTileRows * kernels::kTileRows, kLeastOperandRows,
                    kOperandRows);
}

void linear(const Context& context, const PackedLinear& layer, const LinearArgs& args) {
  const Range rows{0, args.rows};
  const Range panels{args.panel_begin, args.panel_end < 0 ? layer.panels() : args.panel_end};
  if (rows.size() == 0 || panels.size() == 0) return;
  const bool convert = converts(*context.kernels, layer);
  const int64_t unit = row_unit(*context.kernels, layer.precision);
  const int64_t most_units = (convert ? OperandScratch::rows_that_fit(layer) : kBlockM) / unit;
  const int64_t threads = context.pool->size();
  if (threads == 1 || rows.size() * panels.size() * kPanel * layer.inputs <= kSerialWork) {
    Share all{{rows, panels}};
    cut_share(all, unit, most_units, true);
    return run_pieces(context, layer, args, {&all, 1}, 0);
  }
  const auto count = std::min(static_cast<int64_t>(kMostShares), threads);
  const Grid grid = choose_grid(count, rows.size(), panels.size(), unit, cost_of(layer.precision));
  std::array<Share, kMostShares> shares;
  for (int64_t i = 0; i < count; ++i) {
    Share& share = shares[static_cast<std::size_t>(i)];
    share.block = {split_units(rows, unit, grid.row_parts, i % grid.row_parts),
                   split_units(panels, 2, grid.column_parts, i / grid.row_parts)};
    cut_share(share, unit, most_units, false);
  }
  const std::span<Share> used{shares.data(), static_cast<std::size_t>(count)};
  context.pool->run([&](int part) { run_pieces(context, layer, args, used, part); });
}

}  // namespace tokprune
