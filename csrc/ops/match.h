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
  AlignedArray<float> from_, to_, packed_, block_;
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
