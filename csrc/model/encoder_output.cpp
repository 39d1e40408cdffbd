// After the last layer: restored rows, pooling, Dense modules, heads.
#include <algorithm>
#include <cmath>

#include "model/encoder.h"
#include "ops/rows.h"

namespace tokprune {

// The final states, row by row.
struct Encoder::FinalRows {
  const float* states = nullptr;   // rows of ld_hidden floats
  const int32_t* begin = nullptr;  // [sequences + 1]
  const int32_t* position = nullptr;
  const float* size = nullptr;       // null = every row counts once
  const uint8_t* passive = nullptr;  // null = no sequence starts with a passive row
};

namespace {

using kernels::Epilogue;

// Weight of a row in a weighted pooling, before normalisation.
float row_weight(Pooling mode, int32_t position, float size) {
  return mode == Pooling::kWeightedMean ? static_cast<float>(position + 1) * size : size;
}

bool is_weighted(Pooling mode) {
  return mode == Pooling::kMean || mode == Pooling::kMeanSqrtLen || mode == Pooling::kWeightedMean;
}

void scale_to_unit(float* x, int64_t columns) {
  double squares = 0;
  for (int64_t j = 0; j < columns; ++j) squares += static_cast<double>(x[j]) * x[j];
  const auto inverse = static_cast<float>(1.0 / std::max(std::sqrt(squares), 1e-12));
  for (int64_t j = 0; j < columns; ++j) x[j] *= inverse;
}

}  // namespace

void Encoder::finish(Pass& pass, ForwardResult& result) const {
  const Want want = pass.options.want;
  const FinalRows rows = final_rows(pass);
  if (want == Want::kHidden) {
    result.hidden = rows.states;
    result.hidden_begin = rows.begin;
    result.positions = rows.position;
  }
  if (want != Want::kPooled && config_.head != HeadKind::kNone) classify(pass, rows, result);
  if (want != Want::kLogits && !config_.pooling.empty()) pool(pass, rows, result);
}

Encoder::FinalRows Encoder::final_rows(Pass& pass) const {
  Workspace& ws = pass.ws;
  Pruner& pruner = ws.pruner;
  const int64_t sequences = pruner.sequences();
  FinalRows rows;
  if (pass.first_rows_only) {
    for (int32_t s = 0; s <= sequences; ++s) ws.output_begin[s] = s;
    std::fill_n(ws.positions.data(), sequences, 0);
    rows = {.states = ws.x, .begin = ws.output_begin.data(), .position = ws.positions.data()};
    return rows;
  }
  if (!pass.options.plan || !pass.options.plan->restores) {
    rows = {.states = ws.x, .begin = pruner.row_begins(), .position = pruner.position()};
    if (pass.options.plan) {
      rows.size = pass.options.plan->over == OutputOver::kSize ? pruner.size() : nullptr;
      rows.passive = pruner.passive_flags();
    }
    return rows;
  }
  // Survivors take their place among the states put aside earlier.
  for (int64_t r = 0; r < pruner.rows(); ++r) {
    const int32_t token = pruner.token()[r];
    std::copy_n(ws.x + r * ws.ld_hidden, ws.ld_hidden, ws.restored.data() + token * ws.ld_hidden);
    ws.is_restored[token] = 1;
  }
  int32_t count = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    ws.output_begin[s] = count;
    const int32_t begin = pass.batch.begin(s);
    for (int32_t i = 0; i < pass.batch.length(s); ++i) {
      if (!ws.is_restored[begin + i]) continue;
      ws.rows[count] = begin + i;
      ws.positions[count++] = i;
    }
  }
  ws.output_begin[sequences] = count;
  compact_rows(pass.context, ws.restored.data(), 0, ws.ld_hidden, config_.hidden, ws.rows.data(),
               count);
  rows = {.states = ws.restored.data(),
          .begin = ws.output_begin.data(),
          .position = ws.positions.data()};
  return rows;
}

// Concatenates the pooling modes, then applies the Dense modules and the normalisation.
void Encoder::pool(Pass& pass, const FinalRows& all, ForwardResult& result) const {
  Workspace& ws = pass.ws;
  const int64_t d = config_.hidden;
  const int64_t sequences = pass.batch.sequences;
  FinalRows rows = all;
  const Plan* plan = pass.options.plan;
  if (plan && plan->restores && plan->over != OutputOver::kRestored && !pass.first_rows_only) {
    // Only survivors are pooled, although dropped tokens are put back for the hidden output.
    rows.states = ws.x;
    rows.position = ws.pruner.position();
    rows.begin = ws.pruner.row_begins();
    rows.size = plan->over == OutputOver::kSize ? ws.pruner.size() : nullptr;
    rows.passive = ws.pruner.passive_flags();
  }
  for (std::size_t m = 0; m < config_.pooling.size(); ++m) {
    const Pooling mode = config_.pooling[m];
    float* dst = ws.pooled.data() + static_cast<int64_t>(m) * d;
    int32_t entries = 0;
    for (int64_t s = 0; s < sequences; ++s) {
      ws.pool_begin[s] = entries;
      const int32_t first = rows.begin[s];
      const int32_t skip = pass.batch.pool_skip ? pass.batch.pool_skip[s] : 0;
      if (mode == Pooling::kCls) {
        int32_t r = first;
        while (r < rows.begin[s + 1] && rows.position[r] < skip) ++r;
        ws.rows[entries] = r < rows.begin[s + 1] ? r : first;
        ws.pool_weight[entries++] = 1.0f;
        continue;
      }
      const bool passive = rows.passive && rows.passive[s];
      float total = 0.0f;
      for (int32_t r = first + (passive ? 1 : 0); r < rows.begin[s + 1]; ++r) {
        if (rows.position[r] < skip) continue;
        ws.rows[entries] = r;
        const float weight = row_weight(mode, rows.position[r], rows.size ? rows.size[r] : 1.0f);
        ws.pool_weight[entries++] = weight;
        total += weight;
      }
      if (is_weighted(mode)) {
        const float divisor = mode == Pooling::kMeanSqrtLen ? std::sqrt(total) : total;
        for (int32_t e = ws.pool_begin[s]; e < entries; ++e) ws.pool_weight[e] /= divisor;
      } else if (mode == Pooling::kLastToken && entries > ws.pool_begin[s]) {
        int32_t last = ws.rows[ws.pool_begin[s]];
        for (int32_t e = ws.pool_begin[s]; e < entries; ++e) {
          if (rows.position[ws.rows[e]] > rows.position[last]) last = ws.rows[e];
        }
        entries = ws.pool_begin[s];
        ws.rows[entries] = last;
        ws.pool_weight[entries++] = 1.0f;
      }
    }
    ws.pool_begin[sequences] = entries;
    if (mode == Pooling::kMax) {
      for (int64_t s = 0; s < sequences; ++s) {
        float* out = dst + s * ws.ld_pooled;
        std::fill_n(out, d, 0.0f);
        for (int32_t e = ws.pool_begin[s]; e < ws.pool_begin[s + 1]; ++e) {
          const float* state = rows.states + ws.rows[e] * ws.ld_hidden;
          const bool starts = e == ws.pool_begin[s];
          for (int64_t j = 0; j < d; ++j) out[j] = starts ? state[j] : std::max(out[j], state[j]);
        }
      }
      continue;
    }
    reduce_rows(pass.context, {.src = rows.states,
                               .ld_src = ws.ld_hidden,
                               .row_begin = ws.pool_begin.data(),
                               .column = ws.rows.data(),
                               .weight = ws.pool_weight.data(),
                               .dst = dst,
                               .ld_dst = ws.ld_pooled,
                               .rows = sequences,
                               .cols = d});
  }
  int64_t columns = d * std::ssize(config_.pooling);
  float* current = ws.pooled.data();
  float* next = ws.pooled_next.data();
  for (const DenseWeights& dense : weights_.dense) {
    linear(pass.context, dense.layer,
           {.src = current,
            .ld_src = ws.ld_pooled,
            .dst = next,
            .ld_dst = ws.ld_pooled,
            .rows = sequences,
            .epilogue = dense.activation});
    std::swap(current, next);
    columns = dense.outputs;
  }
  if (pass.options.normalize) {
    for (int64_t s = 0; s < sequences; ++s) scale_to_unit(current + s * ws.ld_pooled, columns);
  }
  result.pooled = current;
  result.pooled_columns = columns;
}

void Encoder::classify(Pass& pass, const FinalRows& rows, ForwardResult& result) const {
  Workspace& ws = pass.ws;
  const float* src = rows.states;
  int64_t ld = ws.ld_hidden;
  int64_t count = rows.begin[pass.batch.sequences];
  if (config_.head == HeadKind::kFirst) {
    count = pass.batch.sequences;
    for (int64_t s = 0; s < count; ++s) {
      std::copy_n(rows.states + rows.begin[s] * ws.ld_hidden, config_.hidden,
                  ws.pooled.data() + s * ws.ld_pooled);
    }
    src = ws.pooled.data();
    ld = ws.ld_pooled;
  }
  if (weights_.head_dense.outputs > 0) {
    linear(pass.context, weights_.head_dense.layer,
           {.src = src,
            .ld_src = ld,
            .dst = ws.pooled_next.data(),
            .ld_dst = ws.ld_pooled,
            .rows = count,
            .epilogue = weights_.head_dense.activation});
    src = ws.pooled_next.data();
    ld = ws.ld_pooled;
  }
  linear(pass.context, weights_.head_out.layer,
         {.src = src,
          .ld_src = ld,
          .dst = ws.logits.data(),
          .ld_dst = ws.ld_logits,
          .rows = count,
          .epilogue = Epilogue::kBias});
  result.logits = ws.logits.data();
  result.logit_rows = count;
}

}  // namespace tokprune
