// Which tokens of one sequence stay, given their scores.
#pragma once

#include <cstdint>
#include <vector>

namespace tokprune {

enum class SelectKind : uint8_t {
  kTopK,               // `k` tokens, protected ones counted
  kRatio,              // rounded share `value` of the alive (or input) length, likewise
  kThreshold,          // score >= value
  kThresholdN,         // score >= value / alive tokens
  kThresholdRelative,  // score >= value * (largest or mean alive score)
  kQuantile,           // drop the lowest share `value` of the unprotected tokens
  kTopP,               // smallest set of unprotected tokens that holds share `value` of their score
  kPredictedRatio,     // the chosen one of `ratios`, of the alive tokens, rounded up
  kRankBins,           // bins of the ranking switched on or off one by one (ToP)
  kStride,             // pooling only: groups of `k` neighbours become one
};
enum class Rounding : uint8_t { kCeil, kFloor, kNearest };

struct Selector {
  SelectKind kind = SelectKind::kTopK;
  double value = 0;
  int64_t k = 0;
  bool of_initial = false;  // ratio: of the input length, not of the alive tokens
  bool of_mean = false;     // threshold_rel: of the mean score, not of the largest
  Rounding rounding = Rounding::kCeil;
  std::vector<double> ratios;  // predicted_ratio
  std::vector<uint8_t> bits;   // rank_bins
  bool float32_bins = false;   // rank_bins: the rounding of the official ToP checkpoints
  int64_t min_tokens = 0;
  int64_t max_tokens = 0;  // 0 = no cap
};

struct Candidates {
  const float* score = nullptr;           // [count]
  const uint8_t* is_protected = nullptr;  // [count]
  const int32_t* position = nullptr;      // [count] distinct; breaks ties
  int64_t count = 0;
  int64_t initial_length = 0;
  int64_t choice = 0;  // predicted_ratio: index into `ratios`
};

// Sets keep[i] to 1 for the tokens that stay and returns their number. Protected tokens always
// stay. Then at least min_tokens are kept (the best-scored are added) and at most max_tokens (the
// worst-scored unprotected ones leave). Ties: the lower position wins. `order` is scratch [count].
int64_t select_tokens(const Selector& selector, const Candidates& tokens, uint64_t* order,
                      uint8_t* keep);

// Tokens that kRatio leaves within its bounds; kStride: as if its ratio were 1.
int64_t tokens_left(const Selector& selector, int64_t count, int64_t initial_length);

// False if select_tokens would keep all of `count` tokens whatever their scores.
bool can_drop(const Selector& selector, int64_t count, int64_t initial_length);

}  // namespace tokprune
