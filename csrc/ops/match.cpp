#include "ops/match.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/math.h"
#include "kernels/abi.h"

namespace tokprune {

using kernels::kPanel;

namespace {

// Rows of cosines computed at once: they stay in the first-level cache.
constexpr int64_t kBlockRows = 24;

// dst[0, round_up(cols, 16)) = the row scaled to unit length, padded with zeros.
void unit_row(const StateRows& states, int32_t row, float* dst) {
  const float* src = states.data + row * states.ld;
  const int64_t padded = round_up(states.cols, kPanel);
  std::copy_n(src, states.cols, dst);
  std::fill(dst + states.cols, dst + padded, 0.0f);
  for (int64_t p = 1; p < states.parts; ++p) {
    const float* part = src + p * states.cols;
    for (int64_t j = 0; j < states.cols; ++j) dst[j] += part[j];
  }
  // Independent sums, so that the compiler may use vectors; their order is fixed.
  float lanes[kPanel] = {};
  for (int64_t j = 0; j < padded; j += kPanel) {
    for (int64_t i = 0; i < kPanel; ++i) lanes[i] += dst[j + i] * dst[j + i];
  }
  float squares = 0.0f;
  for (float lane : lanes) squares += lane;
  const float inverse = 1.0f / std::max(std::sqrt(squares), 1e-12f);
  for (int64_t j = 0; j < padded; ++j) dst[j] *= inverse;
}

// -inf of nothing; NaN counts for nothing.
float largest(std::span<const float> values) {
  float lanes[kPanel];
  std::fill_n(lanes, kPanel, -std::numeric_limits<float>::infinity());
  const auto raise = [](float& most, float value) { most = value > most ? value : most; };
  const std::size_t whole = values.size() / kPanel * kPanel;
  for (std::size_t j = 0; j < whole; j += kPanel) {
    for (std::size_t i = 0; i < kPanel; ++i) raise(lanes[i], values[j + i]);
  }
  for (std::size_t j = whole; j < values.size(); ++j) raise(lanes[0], values[j]);
  for (std::size_t i = 1; i < kPanel; ++i) raise(lanes[0], lanes[i]);
  return lanes[0];
}

}  // namespace

// All cosines between two lists of rows, a block at a time.
class Cosines {
 public:
  Cosines(const Context& context, const MatchScratch& scratch, const StateRows& states,
          std::span<const int32_t> from, std::span<const int32_t> to)
      : kernels_(*context.kernels),
        scratch_(scratch),
        ld_(round_up(states.cols, kPanel)),
        from_(std::ssize(from)),
        to_(std::ssize(to)) {
    float* unit = scratch.to_.data();
    for (int64_t i = 0; i < to_; ++i) unit_row(states, to[i], unit + i * ld_);
    kernels_.pack_transposed(
        {.src = unit, .ld_src = ld_, .dst = scratch.packed_.data(), .n = to_, .k = ld_});
    unit = scratch.from_.data();
    for (int64_t i = 0; i < from_; ++i) unit_row(states, from[i], unit + i * ld_);
  }

  // body(i, cosines[to]) for every i of `from`.
  template <class Body>
  void for_each_row(const Body& body) const {
    const int64_t ld_block = round_up(to_, kPanel);
    float* block = scratch_.block_.data();
    for (int64_t begin = 0; begin < from_; begin += kBlockRows) {
      const int64_t rows = std::min(kBlockRows, from_ - begin);
      multiply(begin, rows, 0, block);
      for (int64_t i = 0; i < rows; ++i) body(begin + i, block + i * ld_block);
    }
  }

  // For lists that are the same: those of i and j > i, at [i * round_up(to, 16) + j].
  float* fill_upper() const {
    const int64_t ld = round_up(to_, kPanel);
    float* c = scratch_.pairs_.data();
    for (int64_t begin = 0; begin < from_; begin += kBlockRows) {
      multiply(begin, std::min(kBlockRows, from_ - begin), begin / kPanel, c + begin * ld);
    }
    return c;
  }

 private:
  // Rows [begin, begin + rows) of `from` with the panels of `to` from this one on.
  void multiply(int64_t begin, int64_t rows, int64_t panel, float* c) const {
    const int64_t panels = ceil_div(to_, kPanel);
    kernels_.gemm({.a = scratch_.from_.data() + begin * ld_,
                   .lda = ld_,
                   .b = scratch_.packed_.data() + panel * ld_ * kPanel,
                   .b_panel_stride = ld_ * kPanel,
                   .c = c + panel * kPanel,
                   .ldc = panels * kPanel,
                   .m = rows,
                   .panels = panels - panel,
                   .k = ld_,
                   .accumulate = false,
                   .epilogue = {}});
  }

  const kernels::KernelTable& kernels_;
  const MatchScratch& scratch_;
  int64_t ld_, from_, to_;
};

MatchScratch::MatchScratch(int64_t max_rows, int64_t max_cols) {
  const int64_t cols = round_up(max_cols, kPanel);
  const int64_t rows = round_up(max_rows, kPanel);
  for (AlignedArray<float>* array : {&from_, &to_, &packed_}) {
    *array = AlignedArray<float>(static_cast<std::size_t>(rows * cols));
  }
  block_ = AlignedArray<float>(static_cast<std::size_t>(kBlockRows * rows));
  pairs_ = AlignedArray<float>(static_cast<std::size_t>(max_rows * rows));
}

void best_matches(const Context& context, const MatchScratch& scratch, const StateRows& states,
                  std::span<const int32_t> from, std::span<const int32_t> to,
                  const Matches& matches) {
  const Cosines cosines(context, scratch, states, from, to);
  cosines.for_each_row([&](int64_t i, float* cosine) {
    for (std::size_t j = 0; states.bias && j < to.size(); ++j) cosine[j] += states.bias[to[j]];
    const float* best = std::max_element(cosine, cosine + to.size());
    matches.partner[i] = static_cast<int32_t>(best - cosine);
    matches.similarity[i] =
        *best + (states.bias ? states.bias[from[static_cast<std::size_t>(i)]] : 0.0f);
  });
}

Pairs pair_similarities(const Context& context, const MatchScratch& scratch,
                        const StateRows& states, std::span<const int32_t> rows) {
  const auto count = std::ssize(rows);
  const int64_t ld = round_up(count, kPanel);
  float* similarity = Cosines(context, scratch, states, rows, rows).fill_upper();
  for (int64_t i = 0; states.bias && i < count; ++i) {
    const float own = states.bias[rows[static_cast<std::size_t>(i)]];
    for (int64_t j = i + 1; j < count; ++j) {
      similarity[i * ld + j] += states.bias[rows[static_cast<std::size_t>(j)]] + own;
    }
  }
  return {.similarity = similarity, .ld = ld, .count = count};
}

int64_t join_pairs(const Pairs& pairs, const JoinLimits& limits, const Joins& joins) {
  enum Role : uint8_t { kFree, kHost, kGuest };
  uint8_t* role = joins.role;
  const auto is_open = [role](int64_t i, int64_t j) {
    return role[i] != kGuest && role[j] != kGuest && role[i] + role[j] < 2 * kHost;
  };
  // Pairs only ever close, so a row's best one holds until it is found closed.
  const auto find_best = [&](int64_t i) {
    const float* similarity = pairs.similarity + i * pairs.ld;
    float best = -std::numeric_limits<float>::infinity();
    int64_t partner = -1;
    for (int64_t j = i + 1; j < pairs.count; ++j) {
      if (similarity[j] > best && is_open(i, j)) {
        best = similarity[j];
        partner = j;
      }
    }
    joins.best[i] = best;
    joins.partner[i] = static_cast<int32_t>(partner);
  };
  std::fill_n(role, pairs.count, uint8_t{kFree});
  std::fill_n(joins.host, pairs.count, int32_t{-1});
  for (int64_t i = 0; i < pairs.count; ++i) {
    // As find_best, when all are open.
    const float* begin = pairs.similarity + i * pairs.ld + i + 1;
    const float* end = pairs.similarity + i * pairs.ld + pairs.count;
    joins.best[i] = largest({begin, end});
    const float* at = std::find(begin, end, joins.best[i]);
    const bool found = at != end && std::isfinite(joins.best[i]);
    joins.partner[i] = found ? static_cast<int32_t>(i + 1 + (at - begin)) : -1;
  }
  int64_t joined = 0;
  while (joined < limits.most && pairs.count > 0) {
    const int64_t i = std::max_element(joins.best, joins.best + pairs.count) - joins.best;
    const int64_t j = joins.partner[i];
    if (j < 0) break;  // no pair is left
    if (is_open(i, j)) {
      if (joined >= limits.least && !(joins.best[i] > limits.above)) break;
      const bool second_stays = role[j] == kHost;
      const int64_t guest = second_stays ? i : j;
      const int64_t host = second_stays ? j : i;
      role[guest] = kGuest;
      role[host] = kHost;
      joins.host[guest] = static_cast<int32_t>(host);
      joins.similarity[guest] = joins.best[i];
      ++joined;
    }
    find_best(i);
  }
  return joined;
}

void similarity_energies(const Context& context, const MatchScratch& scratch,
                         const StateRows& states, std::span<const int32_t> rows,
                         const EnergyArgs& args, float* energy) {
  const Cosines cosines(context, scratch, states, rows, rows);
  const auto count = std::ssize(rows);
  cosines.for_each_row([&](int64_t i, const float* cosine) {
    float sum = 0.0f;
    for (int64_t j = 0; j < count; ++j) {
      const float x = cosine[j];
      sum += x >= args.margin ? x : args.alpha * (std::exp(x - args.margin) - 1.0f);
    }
    energy[i] = sum / static_cast<float>(count);
  });
}

}  // namespace tokprune
