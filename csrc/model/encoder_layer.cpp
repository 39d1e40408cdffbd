// One transformer layer: attention, the decision in its middle, output projection, feed-forward.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/math.h"
#include "model/encoder.h"
#include "ops/rows.h"

namespace tokprune {
namespace {

using kernels::Epilogue;
using kernels::kPanel;

AttentionArgs attention_args(const EncoderConfig& config, Precision precision,
                             const EncoderWeights& weights, Workspace& ws) {
  AttentionArgs args;
  args.precision = precision;
  args.shape.heads = config.heads;
  args.shape.head_dim = config.head_dim();
  args.shape.part_stride = round_up(config.hidden, kPanel);
  args.shape.scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim()));
  if (config.relative_attention) {
    args.bias = {.table = weights.relative_bias.data(), .max_positions = config.max_positions};
  }
  args.qkv = ws.qkv.data();
  args.ld_qkv = ws.ld_qkv;
  args.position = ws.pruner.position();
  args.segment = ws.pruner.segment();
  args.key_bias = ws.pruner.key_bias();
  args.sequences = ws.pruner.alive_spans();
  args.scratch = ws.scratch.data();
  args.dst = ws.context.data();
  args.ld_dst = ws.ld_hidden;
  return args;
}

// Multiply-adds of QK^T and of P V.
int64_t square(int64_t n) { return n * n; }

// The context of a passive first token: it attends to nothing.
void clear_context(Workspace& ws, int64_t row) {
  std::memset(ws.context.data() + row * ws.ld_hidden, 0,
              static_cast<std::size_t>(ws.ld_hidden) * sizeof(float));
}

}  // namespace

// Reads ws.x, leaves the sum that the layer's last LayerNorm reads in ws.y.
void Encoder::layer(Pass& pass, int64_t index) const {
  Workspace& ws = pass.ws;
  Pruner& pruner = ws.pruner;
  const LayerWeights& weights = weights_.layers[static_cast<std::size_t>(index)];
  const int64_t d = config_.hidden;
  const int64_t rows_in = pruner.rows();
  linear(pass.context, weights.qkv,
         {.src = ws.x,
          .ld_src = ws.ld_hidden,
          .dst = ws.qkv.data(),
          .ld_dst = ws.ld_qkv,
          .rows = rows_in,
          .operands = ws.operands.data()});
  pass.macs += 3 * d * d * rows_in;

  // Steps that cannot drop anything here, and scores that only they would read, are skipped.
  const Plan* plan = pass.options.plan;
  const auto at = static_cast<std::size_t>(index);
  const bool pruned = plan && pruner.can_drop(plan->mid_steps[at]);
  AttentionArgs args = attention_args(config_, precision_, weights_, ws);
  if (plan && (pruned || !plan->scores_are_own[at])) args.statistics = pruner.statistics(index);
  for (const RowSpan& rows : args.sequences) pass.macs += square(rows.count) * d;

  RowMap map;
  const bool combines = pruned && plan->combines_mid[at] != 0;
  const bool gathers = pruned && !combines;
  if (gathers) {
    attention_pruned(pass, index, args);
    map = pruner.close_site();
  } else {
    attention(pass.context, args, /*first_row_only=*/false);
    if (!args.statistics.empty()) {
      pruner.take_scores(pass.context, index, args, 0, pruner.sequences());
    }
    for (const RowSpan& rows : args.sequences) pass.macs += square(rows.count) * d;
    for (int64_t s = 0; s < pruner.sequences(); ++s) {
      if (pruner.passive(s)) clear_context(ws, pruner.row_begin(s));
    }
  }

  // Surviving rows only: their residual is gathered from the layer's input by index.
  project_attention(pass, weights, gathers ? map.source : nullptr, gathers ? map.rows : rows_in);
  if (combines) combine_rows(pass, index);
  feed_forward(pass, weights, pruner.rows());
}

// Attention with decisions between the softmax and P V. The context rows of the survivors end up
// compact, in the order of the row map.
void Encoder::attention_pruned(Pass& pass, int64_t index, const AttentionArgs& args) const {
  Workspace& ws = pass.ws;
  Pruner& pruner = ws.pruner;
  const std::span<const Step> steps = pass.options.plan->mid_steps[static_cast<std::size_t>(index)];
  const auto store_size = static_cast<int64_t>(ws.probabilities.size());
  pruner.open_site();
  const auto decide = [&](int64_t first, int64_t last) {
    if (!args.statistics.empty()) pruner.take_scores(pass.context, index, args, first, last);
    for (const Step& step : steps) {
      pruner.decide(pass.context, step, first, last);
      if (step.action == Action::kRestore) restore_rows(pass, ws.x, first, last);
    }
  };

  int32_t out = 0;
  for (int64_t first = 0, last = 0; first < pruner.sequences(); first = last) {
    // As many sequences as the store holds; one that it cannot hold takes the fused form.
    int64_t used = 0;
    for (last = first; last < pruner.sequences(); ++last) {
      const int64_t keys = args.sequences[static_cast<std::size_t>(last)].count;
      const int64_t floats = probability_floats(args.shape, keys);
      if (used + floats > store_size) break;
      ws.probability_at[last] = used;
      used += floats;
    }
    const bool staged = last > first;
    if (!staged) last = first + 1;
    const auto count = static_cast<std::size_t>(last - first);
    AttentionArgs group = args;
    group.sequences = args.sequences.subspan(static_cast<std::size_t>(first), count);
    const ProbabilityStore store{ws.probabilities.data(), ws.probability_at.data() + first,
                                 ws.inv_sum.data(), ws.plan.tokens};
    if (staged) {
      attention_probabilities(pass.context, group, store);
    } else {
      attention(pass.context, group, /*first_row_only=*/false);
    }
    decide(first, last);

    for (int64_t s = first; s < last; ++s) {
      const std::span<const int32_t> rows = pruner.context_rows(s);
      const int64_t keys = args.sequences[static_cast<std::size_t>(s)].count;
      pass.macs += (staged ? std::ssize(rows) : keys) * keys * config_.hidden;
      if (pruner.passive(s)) clear_context(ws, out++);
      ws.kept_rows[s] = {
          .row = rows.data(), .count = static_cast<int32_t>(rows.size()), .out_begin = out};
      if (!staged) {
        compact_rows(pass.context, ws.context.data(), out, ws.ld_hidden, config_.hidden,
                     rows.data(), std::ssize(rows));
      }
      out += static_cast<int32_t>(rows.size());
    }
    if (staged) {
      attention_values(pass.context, group, store, {ws.kept_rows.data() + first, count});
    }
  }
}

// The last layer where only first tokens are read: keys and values of every row, the rest for one
// row per sequence. Exact, because every kernel treats rows independently.
void Encoder::layer_first_rows(Pass& pass, int64_t index) const {
  Workspace& ws = pass.ws;
  Pruner& pruner = ws.pruner;
  const LayerWeights& weights = weights_.layers[static_cast<std::size_t>(index)];
  const int64_t d = config_.hidden;
  const int64_t sequences = pruner.sequences();
  const int64_t q_panels = round_up(d, kPanel) / kPanel;
  linear(pass.context, weights.qkv,
         {.src = ws.x,
          .ld_src = ws.ld_hidden,
          .dst = ws.qkv.data() + q_panels * kPanel,
          .ld_dst = ws.ld_qkv,
          .rows = pruner.rows(),
          .panel_begin = q_panels,
          .panel_end = 3 * q_panels,
          .operands = ws.operands.data()});
  for (int64_t s = 0; s < sequences; ++s) {
    ws.rows[s] = static_cast<int32_t>(pruner.row_begin(s));
  }
  gather_rows(pass.context, ws.x, ws.y, ws.ld_hidden, d, ws.rows.data(), sequences);
  linear(pass.context, weights.qkv,
         {.src = ws.y,
          .ld_src = ws.ld_hidden,
          .dst = ws.context.data(),
          .ld_dst = ws.ld_hidden,
          .rows = sequences,
          .panel_begin = 0,
          .panel_end = q_panels,
          .operands = ws.operands.data()});
  for (int64_t s = 0; s < sequences; ++s) {
    std::copy_n(ws.context.data() + s * ws.ld_hidden, d,
                ws.qkv.data() + pruner.row_begin(s) * ws.ld_qkv);
  }
  const AttentionArgs args = attention_args(config_, precision_, weights_, ws);
  attention(pass.context, args, /*first_row_only=*/true);
  project_attention(pass, weights, ws.rows.data(), sequences);
  feed_forward(pass, weights, sequences);
  pass.macs += d * d * (2 * pruner.rows() + sequences) + 2 * d * pruner.rows();
}

// LayerNorm(context W + b + x[residual_rows]) into ws.y.
void Encoder::project_attention(Pass& pass, const LayerWeights& weights,
                                const int32_t* residual_rows, int64_t rows) const {
  Workspace& ws = pass.ws;
  linear(pass.context, weights.output,
         {.src = ws.context.data(),
          .ld_src = ws.ld_hidden,
          .dst = ws.y,
          .ld_dst = ws.ld_hidden,
          .rows = rows,
          .epilogue = Epilogue::kBiasResidual,
          .residual = {ws.x, ws.ld_hidden, residual_rows},
          .operands = ws.operands.data()});
  pass.macs += config_.hidden * config_.hidden * rows;
  norm(pass, weights.attention_norm, ws.y, nullptr, ws.y, rows);
}

// The mid steps of a layer that combines rows: one by one, on the states after attention in ws.y.
void Encoder::combine_rows(Pass& pass, int64_t index) const {
  Workspace& ws = pass.ws;
  Pruner& pruner = ws.pruner;
  const StateRows keys{.data = ws.qkv.data() + round_up(config_.hidden, kPanel),
                       .ld = ws.ld_qkv,
                       .cols = config_.head_dim(),
                       .parts = config_.heads};
  for (const Step& step : pass.options.plan->mid_steps[static_cast<std::size_t>(index)]) {
    const Score& score = pass.options.plan->scores[static_cast<std::size_t>(step.score)];
    const int64_t before = pruner.rows();
    pruner.open_site();
    pass.macs += pruner.decide(pass.context, step, 0, pruner.sequences(),
                               score.keys ? keys : hidden_states(ws, ws.y));
    apply(pass, pruner.close_site(), before, ws.y, ws.x);
  }
}

void Encoder::feed_forward(Pass& pass, const LayerWeights& weights, int64_t rows) const {
  Workspace& ws = pass.ws;
  const int64_t block = kFeedForwardRows * pass.context.pool->size();
  for (int64_t row = 0, count; row < rows; row += count) {
    // A short rest would read all weights for a few rows.
    count = rows - row <= most_feed_forward_rows(block) ? rows - row : block;
    const int64_t at = row * ws.ld_hidden;
    linear(pass.context, weights.ffn_in,
           {.src = ws.y + at,
            .ld_src = ws.ld_hidden,
            .dst = ws.ffn.data(),
            .ld_dst = ws.ld_ffn,
            .rows = count,
            .epilogue = weights_.ffn_activation,
            .operands = ws.operands.data()});
    linear(pass.context, weights.ffn_out,
           {.src = ws.ffn.data(),
            .ld_src = ws.ld_ffn,
            .dst = ws.x + at,
            .ld_dst = ws.ld_hidden,
            .rows = count,
            .epilogue = Epilogue::kBiasResidual,
            .residual = {ws.y + at, ws.ld_hidden, nullptr},
            .operands = ws.operands.data()});
  }
  std::swap(ws.x, ws.y);
  pass.macs += 2 * config_.hidden * config_.intermediate * rows;
}

// dst[i] = LayerNorm(src[rows[i]]) (rows null: src[i]).
void Encoder::norm(Pass& pass, const NormWeights& weights, const float* src, const int32_t* rows,
                   float* dst, int64_t count) const {
  layer_norm(pass.context, {.src = src,
                            .ld_src = pass.ws.ld_hidden,
                            .src_rows = rows,
                            .dst = dst,
                            .ld_dst = pass.ws.ld_hidden,
                            .dst_rows = nullptr,
                            .rows = count,
                            .cols = config_.hidden,
                            .gamma = weights.gamma.data(),
                            .beta = weights.beta.data(),
                            .eps = config_.layer_norm_eps});
}

// Puts the states of the rows that the last decision dropped aside for the final output.
void Encoder::restore_rows(Pass& pass, const float* states, int64_t first, int64_t last) const {
  Workspace& ws = pass.ws;
  for (int64_t s = first; s < last; ++s) {
    for (int32_t row : ws.pruner.dropped(s)) {
      const int32_t token = ws.pruner.token()[row];
      std::copy_n(states + row * ws.ld_hidden, ws.ld_hidden,
                  ws.restored.data() + token * ws.ld_hidden);
      ws.is_restored[token] = 1;
    }
  }
}

}  // namespace tokprune
