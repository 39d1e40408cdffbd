// Which rows of a sequence resemble each other, for merging (ToMe, PiToMe). Always float32.
#pragma once

#include <cstdint>
#include <span>

#include "base/aligned.h"
#include "ops/context.h"

namespace tokprune {

// Vectors to compare: the sum of `parts` neighbouring vectors of `cols` values each, at every row
// of `data`. Several parts are the keys of all heads, whose mean has the same direction.
struct StateRows {
  const float* data = nullptr;
  int64_t ld = 0;
  int64_t cols = 0;
  int64_t parts = 1;
  const float* bias = nullptr;  // by row, added to the cosines of its pairs; null = none
};

// Scratch of one thread, for sequences of up to max_rows rows of max_cols values.
class MatchScratch {
 public:
  MatchScratch() = default;
  MatchScratch(int64_t max_rows, int64_t max_cols);

 private:
  friend class Cosines;
  AlignedArray<float> from_, to_, packed_, block_, pairs_;
};

// For every row of `from`, the index in `to` of its most similar row (ties: the lower index) and
// their similarity: the cosine plus the biases of both. `to` is not empty. A similarity depends on
// its two rows only.
struct Matches {
  int32_t* partner = nullptr;   // [from]
  float* similarity = nullptr;  // [from]
};
void best_matches(const Context& context, const MatchScratch& scratch, const StateRows& states,
                  std::span<const int32_t> from, std::span<const int32_t> to,
                  const Matches& matches);

// Similarities of all pairs of rows: of i and j > i at similarity[i * ld + j]; nothing else of it
// is read.
struct Pairs {
  const float* similarity = nullptr;
  int64_t ld = 0;
  int64_t count = 0;
};

// Those of `rows`, in scratch.
Pairs pair_similarities(const Context& context, const MatchScratch& scratch,
                        const StateRows& states, std::span<const int32_t> rows);

// How many rows join another one: `least` where pairs are left, then up to `most` as long as their
// similarity is greater than `above`.
struct JoinLimits {
  int64_t least = 0;
  int64_t most = 0;
  float above = 0.0f;
};
// What join_pairs finds, and its scratch.
struct Joins {
  int32_t* host = nullptr;      // [count] the row that a row joins; -1: none
  float* similarity = nullptr;  // [count] to it
  float* best = nullptr;        // [count] scratch
  int32_t* partner = nullptr;   // [count] scratch
  uint8_t* role = nullptr;      // [count] scratch
};
// The most similar pairs join, one after the other (ties: the lower first row, then the lower
// second one). Of a pair the second row joins the first, or the row that nobody has joined yet the
// other. Pairs are out whose row has joined another, and those of two rows that others have joined.
// A similarity that is NaN is no pair. Returns the number of rows that join.
int64_t join_pairs(const Pairs& pairs, const JoinLimits& limits, const Joins& joins);

// PiToMe's energy of every row: the mean over all rows of f(cosine), with f(x) = x from `margin` on
// and alpha (exp(x - margin) - 1) below. High in a crowd of similar rows.
struct EnergyArgs {
  float margin = 0.0f;
  float alpha = 1.0f;
};
void similarity_energies(const Context& context, const MatchScratch& scratch,
                         const StateRows& states, std::span<const int32_t> rows,
                         const EnergyArgs& args, float* energy);

}  // namespace tokprune
