#include "ops/score.h"

#include <algorithm>
#include <cmath>

namespace tokprune {
namespace {

// The finaliser of splitmix64 on x plus its increment.
uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

float value_norm(const AttentionArgs& args, int64_t row, int64_t head) {
  const AttentionShape& shape = args.shape;
  const float* v = args.qkv + row * args.ld_qkv + 2 * shape.part_stride + head * shape.head_dim;
  float squares = 0.0f;
  for (int64_t j = 0; j < shape.head_dim; ++j) squares += v[j] * v[j];
  return std::sqrt(squares);
}

}  // namespace

void reduce_heads(const Context& context, std::span<const RowSpan> sequences,
                  const AttentionShape& shape, const HeadReductionArgs& args) {
  context.pool->for_each(static_cast<int64_t>(sequences.size()), [&](int64_t s, int) {
    const RowSpan rows = sequences[static_cast<std::size_t>(s)];
    float* score = args.score + rows.begin;
    std::fill_n(score, rows.count, 0.0f);
    for (int64_t head = 0; head < shape.heads; ++head) {
      const float* sum = args.statistic->sum + head * args.statistic->ld + rows.begin;
      for (int64_t j = 0; j < rows.count; ++j) {
        float term = sum[j];
        if (args.value_norm) term *= value_norm(*args.value_norm, rows.begin + j, head);
        score[j] =
            args.reduction == HeadReduction::kMax ? std::max(score[j], term) : score[j] + term;
      }
    }
    if (args.reduction == HeadReduction::kMean) {
      const float heads = static_cast<float>(shape.heads);
      for (int64_t j = 0; j < rows.count; ++j) score[j] /= heads;
    }
    for (int64_t j = 0; args.sign != 1.0f && j < rows.count; ++j) score[j] *= args.sign;
  });
}

void normalise_scores(float* score, int64_t count, const NormalisationArgs& args) {
  float divisor = 1.0f;
  switch (args.norm) {
    case ScoreNorm::kNone: return;
    case ScoreNorm::kAlive: divisor = static_cast<float>(count); break;
    case ScoreNorm::kConstant: divisor = args.constant; break;
    case ScoreNorm::kInitial: divisor = static_cast<float>(args.initial_length); break;
    case ScoreNorm::kUnprotected: {
      double sum = 0;
      int64_t terms = 0;
      for (int64_t j = 0; j < count; ++j) {
        if (args.is_protected[j]) continue;
        sum += score[j];
        ++terms;
      }
      if (terms == 0 || sum <= 0) return;
      divisor = static_cast<float>(sum / static_cast<double>(terms));
    }
  }
  for (int64_t j = 0; j < count; ++j) score[j] /= divisor;
}

void softmax_scores(float* score, int64_t count) {
  if (count == 0) return;
  const float top = *std::max_element(score, score + count);
  double sum = 0;
  for (int64_t j = 0; j < count; ++j) sum += std::exp(static_cast<double>(score[j] - top));
  for (int64_t j = 0; j < count; ++j) {
    score[j] = static_cast<float>(std::exp(static_cast<double>(score[j] - top)) / sum);
  }
}

uint64_t random_score_state(uint64_t seed, std::span<const int32_t> tokens) {
  uint64_t state = seed;
  for (int32_t token : tokens) state = mix(state ^ static_cast<uint64_t>(token));
  return state;
}

float random_score(uint64_t state, int64_t layer, int32_t position) {
  const uint64_t layer_state = mix(state ^ static_cast<uint64_t>(layer + 1));
  return static_cast<float>(mix(layer_state ^ static_cast<uint64_t>(position)) >> 40) * 0x1p-24f;
}

}  // namespace tokprune
