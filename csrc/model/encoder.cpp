#include "model/encoder.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/math.h"
#include "kernels/abi.h"
#include "ops/rows.h"

namespace tokprune {
namespace {

// Whether nothing but each sequence's first token is read after the last layer.
bool reads_first_rows_only(const EncoderConfig& config, const RaggedBatch& batch,
                           const ForwardOptions& options) {
  if (options.trace || options.want == Want::kHidden) return false;
  if (options.plan) {
    // A droppable first token must see the decision of the last layer.
    if (options.plan->passive_first || !options.plan->protect_first) return false;
    if (options.plan->over == OutputOver::kRestored) return false;
  }
  if (options.want == Want::kLogits) return config.head == HeadKind::kFirst;
  return !batch.pool_skip && config.pooling.size() == 1 && config.pooling[0] == Pooling::kCls;
}

}  // namespace

Encoder::Encoder(EncoderConfig config, const Context& context, const TensorMap& tensors,
                 Precision precision, std::optional<std::span<const std::byte>> packed)
    : config_(std::move(config)),
      precision_(precision),
      weights_(context, config_, tensors, precision, packed) {}

void Encoder::check(const ForwardOptions& options) const {
  require(options.want != Want::kPooled || !config_.pooling.empty(),
          "a pooled output was asked for, but the model has no pooling");
  require(options.want != Want::kLogits || config_.head != HeadKind::kNone,
          "logits were asked for, but the model has no head");
  if (!options.plan) return;
  options.plan->check_fits(config_);
  const bool restored = options.plan->output == OutputKind::kTokens;
  require(config_.head != HeadKind::kToken || restored || options.plan->steps.empty(),
          "a model that labels every token needs a policy that restores pruned tokens");
}

WorkspacePlan Encoder::workspace_plan(const RaggedBatch& batch, const ForwardOptions& options,
                                      int64_t threads) const {
  WorkspacePlan plan{.tokens = batch.tokens(), .sequences = batch.sequences, .threads = threads};
  for (int64_t s = 0; s < batch.sequences; ++s) {
    plan.longest = std::max(plan.longest, batch.length(s));
  }
  if (options.plan) {
    plan.scores = static_cast<int64_t>(options.plan->scores.size());
    plan.restores = options.plan->restores;
    plan.merges = options.plan->merges;
    for (const Step& step : options.plan->steps) {
      plan.mid_steps |= step.site == Site::kMid;
      for (const Mlp* mlp : {step.gate.get(), step.predictor.get()}) {
        if (!mlp) continue;
        plan.mlp_hidden = std::max(plan.mlp_hidden, mlp->hidden_columns());
        plan.mlp_outputs = std::max(plan.mlp_outputs, mlp->output_columns());
      }
    }
  }
  return plan;
}

void Encoder::reserve(Workspace& ws, const WorkspacePlan& plan) const {
  // Modes lie side by side and are written in their order: each one's padding falls on columns that
  // the next writes, the last one's on columns of its own.
  const int64_t before_last = std::max<int64_t>(1, std::ssize(config_.pooling)) - 1;
  int64_t widest = before_last * config_.hidden + round_up(config_.hidden, kernels::kPanel);
  for (const DenseWeights& d : weights_.dense) widest = std::max(widest, d.outputs);
  const int64_t logit_columns = std::max<int64_t>(1, weights_.head_out.outputs);
  widest = std::max(widest, weights_.head_dense.outputs);
  ws.reserve(config_, precision_, widest, logit_columns, plan);
}

ForwardResult Encoder::forward(const Context& context, Workspace& ws, const RaggedBatch& batch,
                               const ForwardOptions& options) const {
  Pass pass{context, ws, batch, options};
  pass.first_rows_only = reads_first_rows_only(config_, batch, options);
  Pruner& pruner = ws.pruner;
  pruner.start(batch, options.plan, options.trace);

  number_positions(pass);
  if (options.plan && options.plan->restores) {
    std::fill_n(ws.is_restored.data(), batch.tokens(), uint8_t{0});
  }
  boundary(pass, 0, [&](const int32_t* rows, int64_t count, float* dst) {
    for (int64_t i = 0; i < count; ++i) ws.rows[i] = rows ? rows[i] : static_cast<int32_t>(i);
    embed_rows(pass, count, dst);
  });
  for (int64_t l = 0; l < config_.layers; ++l) {
    const bool last = l + 1 == config_.layers;
    if (last && pass.first_rows_only) {
      layer_first_rows(pass, l);
      // What the policy has left, not what was computed: the other rows were read as keys.
      pruner.record_kept(l, ws.kept_counts.data() + l * batch.sequences);
      norm(pass, weights_.layers.back().ffn_norm, ws.y, nullptr, ws.x, batch.sequences);
      break;
    }
    layer(pass, l);
    const NormWeights& weights = weights_.layers[static_cast<std::size_t>(l)].ffn_norm;
    boundary(pass, l + 1, [&](const int32_t* rows, int64_t count, float* dst) {
      norm(pass, weights, ws.y, rows, dst, count);
    });
  }
  ForwardResult result;
  finish(pass, result);
  result.macs = pass.macs;
  return result;
}

// RoBERTa gives a pad token inside a sequence no position of its own.
void Encoder::number_positions(Pass& pass) const {
  const RaggedBatch& batch = pass.batch;
  for (int64_t s = 0; s < batch.sequences; ++s) {
    int32_t next = 0;
    for (int64_t t = batch.begin(s); t < batch.begin(s) + batch.length(s); ++t) {
      pass.ws.position_index[t] = next;
      next += batch.input_ids[t] == config_.position_pad_id ? 0 : 1;
    }
  }
}

// LayerNorm(word + segment + position) of the tokens listed in ws.rows, and ELECTRA's projection.
void Encoder::embed_rows(Pass& pass, int64_t count, float* dst) const {
  Workspace& ws = pass.ws;
  const RaggedBatch& batch = pass.batch;
  const bool project = !weights_.embedding_projection.empty();
  float* target = project ? ws.embedding.data() : dst;
  const int64_t ld = project ? ws.ld_embedding : ws.ld_hidden;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t token = ws.rows[i];
    ws.ids[i] = batch.input_ids[token];
    ws.types[i] = batch.token_type_ids ? batch.token_type_ids[token] : 0;
    ws.positions[i] = static_cast<int32_t>(config_.position_offset) + ws.position_index[token];
    if (ws.ids[i] == config_.position_pad_id) {
      ws.positions[i] = static_cast<int32_t>(config_.position_pad_id);
    }
  }
  embed(pass.context, {.word = weights_.word.data(),
                       .word_id = ws.ids.data(),
                       .position = weights_.position.data(),
                       .position_id = ws.positions.data(),
                       .type = weights_.token_type.data(),
                       .type_id = ws.types.data(),
                       .dst = target,
                       .ld_dst = ld,
                       .rows = count,
                       .cols = config_.embedding_size});
  layer_norm(pass.context, {.src = target,
                            .ld_src = ld,
                            .src_rows = nullptr,
                            .dst = target,
                            .ld_dst = ld,
                            .dst_rows = nullptr,
                            .rows = count,
                            .cols = config_.embedding_size,
                            .gamma = weights_.embedding_norm.gamma.data(),
                            .beta = weights_.embedding_norm.beta.data(),
                            .eps = config_.layer_norm_eps});
  if (project) {
    linear(pass.context, weights_.embedding_projection,
           {.src = target, .ld_src = ld, .dst = dst, .ld_dst = ws.ld_hidden, .rows = count});
  }
}

// What the step reads off the finished states in ws.x before it decides. Sequences that it cannot
// prune, whatever it read, are left out.
void Encoder::read_states(Pass& pass, const Step& step) const {
  Workspace& ws = pass.ws;
  Pruner& pruner = ws.pruner;
  for (int64_t first = 0, last = 0; first < pruner.sequences(); first = last + 1) {
    for (last = first; last < pruner.sequences() && pruner.can_drop(step, last);) ++last;
    const int64_t begin = pruner.row_begin(first);
    const int64_t rows = pruner.row_begin(last) - begin;
    if (step.gate) {
      run_mlp(pass, *step.gate, ws.x + begin * ws.ld_hidden, rows);
      pruner.take_gate(step, begin, rows, ws.context.data(), step.gate->output_columns());
    }
    if (!step.predictor) continue;
    // ws.y is free: ws.x has been made from it.
    for (int64_t s = first; s < last; ++s) {
      ws.rows[s - first] = static_cast<int32_t>(pruner.row_begin(s));
    }
    gather_rows(pass.context, ws.x, ws.y, ws.ld_hidden, config_.hidden, ws.rows.data(),
                last - first);
    run_mlp(pass, *step.predictor, ws.y, last - first);
    for (int64_t s = first; s < last; ++s) {
      const int64_t ld = step.predictor->output_columns();
      pruner.take_prediction(step, s, ws.context.data() + (s - first) * ld);
    }
  }
}

// Into ws.context, whose row stride is the perceptron's output_columns.
void Encoder::run_mlp(Pass& pass, const Mlp& mlp, const float* src, int64_t rows) const {
  Workspace& ws = pass.ws;
  mlp.run(pass.context, {.src = src,
                         .ld_src = ws.ld_hidden,
                         .hidden = ws.ffn.data(),
                         .ld_hidden = row_stride(mlp.hidden_columns()),
                         .dst = ws.context.data(),
                         .ld_dst = mlp.output_columns(),
                         .rows = rows});
  pass.macs += mlp.macs() * rows;
}

StateRows Encoder::hidden_states(const Workspace& ws, const float* states) const {
  return {.data = states, .ld = ws.ld_hidden, .cols = config_.hidden};
}

// Carries out a decision on `before` rows of states. Weighted sums go to `other`, and the two swap.
void Encoder::apply(Pass& pass, const RowMap& map, int64_t before, float*& states,
                    float*& other) const {
  const int64_t ld = pass.ws.ld_hidden;
  if (!map.weighted) {
    if (map.rows == before) return;
    return compact_rows(pass.context, states, 0, ld, config_.hidden, map.source, map.rows);
  }
  reduce_rows(pass.context, {.src = states,
                             .ld_src = ld,
                             .row_begin = map.row_begin,
                             .column = map.column,
                             .weight = map.weight,
                             .dst = other,
                             .ld_dst = ld,
                             .rows = map.rows,
                             .cols = config_.hidden});
  std::swap(states, other);
}

// Between layers: the post steps of layer index - 1, then the embed and pre steps of `index`.
// emit(rows, count, dst) produces the layer input of the listed rows (null = all) at dst. Rows
// that simply leave are never produced.
template <class Emit>
void Encoder::boundary(Pass& pass, int64_t index, const Emit& emit) const {
  Workspace& ws = pass.ws;
  Pruner& pruner = ws.pruner;
  const Plan* plan = pass.options.plan;
  const auto at = static_cast<std::size_t>(index);
  const std::span<const Step> post =
      plan && index > 0 ? plan->post_steps[at - 1] : std::span<const Step>();
  const std::span<const Step> pre =
      plan && index < config_.layers ? plan->pre_steps[at] : std::span<const Step>();
  const auto record = [&] {
    if (index == 0) return;
    pruner.record_kept(index - 1, ws.kept_counts.data() + (index - 1) * pruner.sequences());
  };
  if (post.empty() && pre.empty()) {
    record();
    return emit(nullptr, pruner.rows(), ws.x);
  }

  bool produced = false;
  const auto run = [&](std::span<const Step> steps) {
    for (const Step& step : steps) {
      const bool reads = (step.gate || step.predictor) && pruner.can_drop({&step, 1});
      if ((reads || step.action != Action::kDrop) && !produced) {
        emit(pass.listed ? ws.survivors.data() : nullptr, pruner.rows(), ws.x);
        produced = true;
      }
      const int64_t before = pruner.rows();
      pruner.open_site();
      if (reads) read_states(pass, step);
      pass.macs +=
          pruner.decide(pass.context, step, 0, pruner.sequences(), hidden_states(ws, ws.x));
      if (step.action == Action::kRestore) {
        restore_rows(pass, ws.x, 0, pruner.sequences());
      }
      const RowMap map = pruner.close_site();
      if (produced) {
        apply(pass, map, before, ws.x, ws.y);
      } else {
        // Not produced yet: remember which of the rows `emit` knows are still there.
        for (int64_t i = 0; i < map.rows; ++i) {
          ws.survivors[i] = pass.listed ? ws.survivors[map.source[i]] : map.source[i];
        }
        pass.listed = true;
      }
    }
  };
  pass.listed = false;
  run(post);
  record();
  run(pre);
  if (!produced) emit(ws.survivors.data(), pruner.rows(), ws.x);
}

}  // namespace tokprune
