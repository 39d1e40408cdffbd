#include "ops/select.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

namespace tokprune {
namespace {

// Ascending keys = descending scores. NaN ranks below everything, so that
// broken activations cannot break the ordering itself.
uint64_t sort_key(float score, int64_t index) {
  if (std::isnan(score)) score = -std::numeric_limits<float>::infinity();
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 becomes +0: they tie
  const uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (static_cast<uint64_t>(~ascending) << 32) | static_cast<uint32_t>(index);
}

int64_t index_of(uint64_t key) { return static_cast<int64_t>(key & 0xffffffffu); }

int64_t round_count(double count, Rounding rounding) {
  // ratio * n may miss an integer by an ulp in either direction.
  constexpr double kSlack = 1e-9;
  switch (rounding) {
    case Rounding::kCeil: return static_cast<int64_t>(std::ceil(count - kSlack));
    case Rounding::kFloor: return static_cast<int64_t>(std::floor(count + kSlack));
    case Rounding::kNearest: break;
  }
  return static_cast<int64_t>(std::nearbyint(count));
}

// Tokens that a ratio keeps.
int64_t ratio_count(const Selector& selector, int64_t count, int64_t initial_length) {
  const int64_t of = selector.of_initial ? initial_length : count;
  return round_count(selector.value * static_cast<double>(of), selector.rounding);
}

int64_t predicted_count(double ratio, int64_t count) {
  return round_count(ratio * static_cast<double>(count), Rounding::kCeil);
}

// Tokens that a quantile drops.
int64_t quantile_count(const Selector& selector, int64_t unprotected) {
  return round_count(selector.value * static_cast<double>(unprotected), Rounding::kFloor);
}

int64_t bin_of(int64_t rank, int64_t ranked, int64_t bins, bool float32_rule) {
  if (!float32_rule) return rank * bins / ranked;
  const float share =
      static_cast<float>(rank) / (static_cast<float>(static_cast<double>(ranked) + 1e-6));
  return std::min<int64_t>(static_cast<int64_t>(share * static_cast<float>(bins)), bins - 1);
}

// The ranking of the unprotected tokens, made on first use.
struct Ranking {
  const Candidates& tokens;
  uint64_t* order;
  int64_t unprotected;
  bool sorted = false;

  void sort() {
    if (std::exchange(sorted, true)) return;
    int64_t n = 0;
    for (int64_t i = 0; i < tokens.count; ++i) {
      if (!tokens.is_protected[i]) order[n++] = sort_key(tokens.score[i], i);
    }
    std::sort(order, order + n, [this](uint64_t a, uint64_t b) {
      if (a >> 32 != b >> 32) return a < b;
      return tokens.position[index_of(a)] < tokens.position[index_of(b)];
    });
  }

  void keep_best(int64_t count, uint8_t* keep) {
    count = std::clamp<int64_t>(count, 0, unprotected);
    if (count > 0 && count < unprotected) sort();
    if (count == unprotected) {
      std::fill_n(keep, tokens.count, uint8_t{1});
      return;
    }
    for (int64_t r = 0; r < count; ++r) keep[index_of(order[r])] = 1;
  }
};

float threshold_of(const Selector& selector, const Candidates& tokens) {
  switch (selector.kind) {
    case SelectKind::kThresholdN:
      return static_cast<float>(selector.value / static_cast<double>(tokens.count));
    case SelectKind::kThresholdRelative: break;
    default: return static_cast<float>(selector.value);
  }
  double reference = 0;
  if (selector.of_mean) {
    for (int64_t i = 0; i < tokens.count; ++i) reference += tokens.score[i];
    reference /= static_cast<double>(tokens.count);
  } else {
    reference = *std::max_element(tokens.score, tokens.score + tokens.count);
  }
  return static_cast<float>(selector.value * reference);
}

void apply(const Selector& selector, const Candidates& tokens, Ranking& ranking, uint8_t* keep) {
  const int64_t protected_count = tokens.count - ranking.unprotected;
  switch (selector.kind) {
    case SelectKind::kTopK: return ranking.keep_best(selector.k - protected_count, keep);
    case SelectKind::kRatio: {
      const int64_t count = ratio_count(selector, tokens.count, tokens.initial_length);
      return ranking.keep_best(count - protected_count, keep);
    }
    case SelectKind::kPredictedRatio: {
      const double ratio = selector.ratios[static_cast<std::size_t>(tokens.choice)];
      return ranking.keep_best(predicted_count(ratio, tokens.count) - protected_count, keep);
    }
    case SelectKind::kThreshold:
    case SelectKind::kThresholdN:
    case SelectKind::kThresholdRelative: {
      const float threshold = threshold_of(selector, tokens);
      for (int64_t i = 0; i < tokens.count; ++i) {
        if (tokens.score[i] >= threshold) keep[i] = 1;
      }
      return;
    }
    case SelectKind::kQuantile: {
      const int64_t dropped = quantile_count(selector, ranking.unprotected);
      return ranking.keep_best(ranking.unprotected - dropped, keep);
    }
    case SelectKind::kTopP: {
      ranking.sort();
      double total = 0;
      for (int64_t r = 0; r < ranking.unprotected; ++r) {
        total += tokens.score[index_of(ranking.order[r])];
      }
      double sum = 0;
      for (int64_t r = 0; r < ranking.unprotected && sum < selector.value * total; ++r) {
        const int64_t index = index_of(ranking.order[r]);
        sum += tokens.score[index];
        keep[index] = 1;
      }
      return;
    }
    case SelectKind::kRankBins: {
      ranking.sort();
      const auto bins = static_cast<int64_t>(selector.bits.size());
      for (int64_t r = 0; r < ranking.unprotected; ++r) {
        const int64_t bin = bin_of(r, ranking.unprotected, bins, selector.float32_bins);
        if (selector.bits[static_cast<std::size_t>(bin)]) keep[index_of(ranking.order[r])] = 1;
      }
      return;
    }
    case SelectKind::kStride: return;
  }
}

}  // namespace

int64_t tokens_left(const Selector& selector, int64_t count, int64_t initial_length) {
  int64_t left = count;
  if (selector.kind == SelectKind::kRatio) {
    left = std::min(count, ratio_count(selector, count, initial_length));
  }
  left = std::max(left, std::min(selector.min_tokens, count));
  return selector.max_tokens > 0 ? std::min(left, selector.max_tokens) : left;
}

bool can_drop(const Selector& selector, int64_t count, int64_t initial_length) {
  if (selector.max_tokens > 0 && count > selector.max_tokens) return true;
  if (selector.kind == SelectKind::kStride) return count > 1;  // whatever min_tokens is
  if (count <= selector.min_tokens) return false;
  switch (selector.kind) {
    case SelectKind::kTopK: return selector.k < count;
    case SelectKind::kRatio: return ratio_count(selector, count, initial_length) < count;
    case SelectKind::kPredictedRatio:
      return predicted_count(*std::min_element(selector.ratios.begin(), selector.ratios.end()),
                             count) < count;
    case SelectKind::kQuantile: return quantile_count(selector, count) > 0;
    case SelectKind::kRankBins:
      return std::find(selector.bits.begin(), selector.bits.end(), 0) != selector.bits.end();
    case SelectKind::kThreshold:
    case SelectKind::kThresholdN:
    case SelectKind::kThresholdRelative:
    case SelectKind::kTopP:
    case SelectKind::kStride: break;
  }
  return count > 0;
}

int64_t select_tokens(const Selector& selector, const Candidates& tokens, uint64_t* order,
                      uint8_t* keep) {
  int64_t unprotected = 0;
  for (int64_t i = 0; i < tokens.count; ++i) {
    keep[i] = tokens.is_protected[i];
    unprotected += tokens.is_protected[i] ? 0 : 1;
  }
  if (tokens.count == 0) return 0;
  Ranking ranking{tokens, order, unprotected};
  apply(selector, tokens, ranking, keep);

  int64_t kept = std::count(keep, keep + tokens.count, uint8_t{1});
  if (kept < std::min(selector.min_tokens, tokens.count)) {
    ranking.sort();
    for (int64_t r = 0; r < unprotected && kept < selector.min_tokens; ++r) {
      uint8_t& flag = keep[index_of(order[r])];
      kept += flag ? 0 : 1;
      flag = 1;
    }
  }
  if (selector.max_tokens > 0 && kept > selector.max_tokens) {
    ranking.sort();
    for (int64_t r = unprotected - 1; r >= 0 && kept > selector.max_tokens; --r) {
      uint8_t& flag = keep[index_of(order[r])];
      kept -= flag ? 1 : 0;
      flag = 0;
    }
  }
  return kept;
}

}  // namespace tokprune
