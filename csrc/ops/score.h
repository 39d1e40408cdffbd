// Token importance scores: higher means keep. Definitions in the policy format's documentation.
#pragma once

#include <cstdint>
#include <span>

#include "ops/attention.h"
#include "ops/context.h"

namespace tokprune {

enum class HeadReduction : uint8_t { kMean, kSum, kMax };
enum class ScoreNorm : uint8_t {
  kNone,         // the column sum itself
  kAlive,        // divided by the number of alive tokens
  kConstant,     // divided by a constant
  kInitial,      // divided by the input length
  kUnprotected,  // divided by its mean over unprotected alive tokens
};

// score[row] = reduction over heads, in ascending head order, of statistic.sum[head][row], for the
// rows of `sequences`, times `sign`. With `values` (see AttentionArgs::qkv) each head's term is
// first multiplied by the norm of the row's value vector (ATS).
struct HeadReductionArgs {
  const Statistic* statistic = nullptr;
  HeadReduction reduction = HeadReduction::kMean;
  float sign = 1.0f;
  const AttentionArgs* value_norm = nullptr;
  float* score = nullptr;
};
void reduce_heads(const Context& context, std::span<const RowSpan> sequences,
                  const AttentionShape& shape, const HeadReductionArgs& args);

// Divides the scores of one sequence in place.
struct NormalisationArgs {
  ScoreNorm norm = ScoreNorm::kNone;
  float constant = 1.0f;
  int64_t initial_length = 0;
  const uint8_t* is_protected = nullptr;  // [count]
};
void normalise_scores(float* score, int64_t count, const NormalisationArgs& args);

// Softmax over the scores of one sequence, in place.
void softmax_scores(float* score, int64_t count);

// Control baseline: a uniform number in [0, 1) that depends on the seed, the whole token content,
// the layer and the position, never on the batch.
uint64_t random_score_state(uint64_t seed, std::span<const int32_t> tokens);
float random_score(uint64_t state, int64_t layer, int32_t position);

}  // namespace tokprune
