#include "model/workspace.h"

#include <algorithm>

#include "base/math.h"
#include "kernels/abi.h"

namespace tokprune {
namespace {

AlignedArray<float> floats(int64_t rows, int64_t columns) {
  return AlignedArray<float>(static_cast<std::size_t>(rows * columns));
}

bool holds(const WorkspacePlan& have, const WorkspacePlan& wanted) {
  return have.tokens >= wanted.tokens && have.sequences >= wanted.sequences &&
         have.longest >= wanted.longest && have.scores >= wanted.scores &&
         have.mlp_hidden >= wanted.mlp_hidden && have.mlp_outputs >= wanted.mlp_outputs &&
         have.threads >= wanted.threads && have.mid_steps >= wanted.mid_steps &&
         have.restores >= wanted.restores && have.merges >= wanted.merges;
}

WorkspacePlan larger(const WorkspacePlan& a, const WorkspacePlan& b) {
  return {.tokens = std::max(a.tokens, b.tokens),
          .sequences = std::max(a.sequences, b.sequences),
          .longest = std::max(a.longest, b.longest),
          .scores = std::max(a.scores, b.scores),
          .mlp_hidden = std::max(a.mlp_hidden, b.mlp_hidden),
          .mlp_outputs = std::max(a.mlp_outputs, b.mlp_outputs),
          .threads = std::max(a.threads, b.threads),
          .mid_steps = a.mid_steps || b.mid_steps,
          .restores = a.restores || b.restores,
          .merges = a.merges || b.merges};
}

}  // namespace

int64_t row_stride(int64_t columns) {
  const int64_t lines = ceil_div(columns, kernels::kPanel);
  return (lines | 1) * kernels::kPanel;
}

void Workspace::reserve(const EncoderConfig& config, Precision precision, int64_t widest_pooled,
                        int64_t logit_columns, const WorkspacePlan& wanted) {
  if (holds(plan, wanted)) return;
  const WorkspacePlan grown = larger(plan, wanted);
  *this = Workspace();  // give the old memory back first
  plan = grown;
  // A few rows of slack, so that growing lengths do not reallocate at every call.
  plan.tokens = round_up(plan.tokens, 64);
  plan.sequences = round_up(plan.sequences, 8);
  plan.longest = std::min(round_up(plan.longest, 64), config.max_positions);

  const int64_t part = round_up(config.hidden, kernels::kPanel);
  ld_hidden = row_stride(config.hidden);
  ld_qkv = row_stride(3 * part);
  ld_ffn = row_stride(config.intermediate);
  ld_embedding = row_stride(config.embedding_size);
  ld_pooled = row_stride(widest_pooled);
  ld_logits = row_stride(logit_columns);
  x_memory = floats(plan.tokens, ld_hidden);
  y_memory = floats(plan.tokens, ld_hidden);
  x = x_memory.data();
  y = y_memory.data();
  qkv = floats(plan.tokens, ld_qkv);
  context = floats(plan.tokens, std::max(ld_hidden, plan.mlp_outputs));
  const int64_t block = most_feed_forward_rows(kFeedForwardRows * plan.threads);
  const int64_t ffn_rows = std::min(plan.tokens, block);
  ffn = floats(1, std::max(ffn_rows * ld_ffn, plan.tokens * row_stride(plan.mlp_hidden)));
  if (config.embedding_size != config.hidden) embedding = floats(plan.tokens, ld_embedding);
  if (plan.restores) {
    restored = floats(plan.tokens, ld_hidden);
    is_restored = AlignedArray<uint8_t>(static_cast<std::size_t>(plan.tokens));
  }
  output_begin = AlignedArray<int32_t>(static_cast<std::size_t>(plan.sequences + 1));

  AttentionShape shape;
  shape.heads = config.heads;
  shape.head_dim = config.head_dim();
  if (plan.mid_steps) {
    const int64_t all = config.heads * plan.tokens * round_up(plan.longest, kernels::kPanel);
    probabilities = floats(1, std::min(kProbabilityBudget, all));
    inv_sum = floats(config.heads, plan.tokens);
    probability_at = AlignedArray<int64_t>(static_cast<std::size_t>(plan.sequences));
    kept_rows = AlignedArray<KeptRows>(static_cast<std::size_t>(plan.sequences));
  }
  for (AlignedArray<int32_t>* array :
       {&ids, &types, &positions, &rows, &position_index, &survivors}) {
    *array = AlignedArray<int32_t>(static_cast<std::size_t>(plan.tokens));
  }
  pooled = floats(plan.sequences, ld_pooled);
  pooled_next = floats(plan.sequences, ld_pooled);
  pool_weight = floats(1, plan.tokens);
  pool_begin = AlignedArray<int32_t>(static_cast<std::size_t>(plan.sequences + 1));
  logits = floats(config.head == HeadKind::kToken ? plan.tokens : plan.sequences, ld_logits);
  kept_counts = AlignedArray<int32_t>(static_cast<std::size_t>(config.layers * plan.sequences));
  for (int64_t i = 0; i < plan.threads; ++i) {
    scratch.emplace_back(shape, plan.longest);
    operands.emplace_back(precision, std::max(config.hidden, config.intermediate));
  }
  pruner = Pruner(config, {.tokens = plan.tokens,
                           .sequences = plan.sequences,
                           .scores = plan.scores,
                           .threads = plan.threads,
                           .merges = plan.merges});
}

}  // namespace tokprune
