// Pruner: decisions that make one row of several. Every row gets a leader, the first row of its
// group; leaders keep their order.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/pruner.h"

namespace tokprune {
namespace {

// Keeps the logarithm finite; what a token receives is 1 on average.
constexpr float kLeastAttention = 1e-6f;

}  // namespace

// Tokens that stay out of the pooled mean do not blend with those in it.
bool Pruner::is_mergeable(int64_t s, int64_t row) const {
  const bool skipped = batch_.pool_skip && position_[row] < batch_.pool_skip[s];
  return !skipped && !is_protected(s, row);
}

// Unprotected rows, alternately one side and the other (ToMe).
Pruner::Sides Pruner::alternate(int64_t s, const Scratch& scratch) const {
  const RowSpan rows = alive(s);
  std::size_t from = 0;
  std::size_t to = 0;
  for (int32_t i = 0; i < rows.count; ++i) {
    const int32_t row = rows.begin + i;
    if (!is_mergeable(s, row)) continue;
    if (i % 2 == 0) {
      scratch.from[from++] = row;
    } else {
      scratch.to[to++] = row;
    }
  }
  return {{scratch.from.data(), from}, {scratch.to.data(), to}};
}

// The rows of highest energy, twice as many as shall leave, alternately in that order (PiToMe).
Pruner::Sides Pruner::rank_energies(const Context& context, const Step& step, int64_t s,
                                    const Scratch& scratch, const StateRows& states) const {
  const RowSpan rows = alive(s);
  std::size_t count = 0;
  for (int32_t row = rows.begin; row < rows.begin + rows.count; ++row) {
    if (is_mergeable(s, row)) scratch.from[count++] = row;
  }
  const int64_t left = tokens_left(step.select, rows.count, batch_.length(s));
  const auto wanted = static_cast<std::size_t>(std::max<int64_t>(0, rows.count - left));
  const std::size_t merging = std::min(wanted, count / 2);
  if (merging == 0) return {};
  const std::span<const int32_t> candidates(scratch.from.data(), count);
  float* energy = scratch.score.data();
  similarity_energies(context, scratch.match, states, candidates,
                      {.margin = step.margin, .alpha = step.alpha}, energy);
  int32_t* order = scratch.partner.data();
  std::iota(order, order + count, 0);
  for (std::size_t i = 0; i < count; ++i) {
    if (std::isnan(energy[i])) energy[i] = -INFINITY;  // a NaN would break the ordering itself
  }
  std::sort(order, order + count, [energy](int32_t a, int32_t b) {
    return energy[a] != energy[b] ? energy[a] > energy[b] : a < b;
  });
  int32_t* from = scratch.position.data();  // while scratch.from is still read
  for (std::size_t i = 0; i < merging; ++i) {
    from[i] = candidates[static_cast<std::size_t>(order[2 * i])];
    scratch.to[i] = candidates[static_cast<std::size_t>(order[2 * i + 1])];
  }
  std::copy_n(from, merging, scratch.from.data());
  return {{scratch.from.data(), merging}, {scratch.to.data(), merging}};
}

// The rows that join another one, and at the same place that one.
Pruner::Sides Pruner::join_sequence(const Context& context, const Step& step, int64_t s,
                                    const Scratch& scratch, const StateRows& states) const {
  const RowSpan rows = alive(s);
  const Selector& select = step.select;
  std::size_t count = 0;
  for (int32_t row = rows.begin; row < rows.begin + rows.count; ++row) {
    if (is_mergeable(s, row)) scratch.from[count++] = row;
  }
  JoinLimits limits;
  limits.least = rows.count - tokens_left(select, rows.count, batch_.length(s));
  limits.most = limits.least;
  if (select.kind == SelectKind::kThreshold) {
    limits.above = static_cast<float>(-select.value);
    limits.most = std::max(limits.least, rows.count - select.min_tokens);
  }
  if (limits.most <= 0 || count < 2) return {};
  const std::span<const int32_t> candidates(scratch.from.data(), count);
  const Joins joins{.host = scratch.position.data(),
                    .similarity = scratch.similarity.data(),
                    .best = scratch.score.data(),
                    .partner = scratch.partner.data(),
                    .role = scratch.is_protected.data()};
  join_pairs(pair_similarities(context, scratch.match, states, candidates), limits, joins);
  for (std::size_t i = 0; i < count; ++i) {
    const int32_t host = joins.host[i];
    scratch.to[i] = host < 0 ? -1 : candidates[static_cast<std::size_t>(host)];
  }
  std::size_t joined = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (scratch.to[i] < 0) continue;
    scratch.from[joined] = scratch.from[i];
    scratch.to[joined] = scratch.to[i];
    scratch.similarity[joined] = scratch.similarity[i];
    scratch.partner[joined] = static_cast<int32_t>(joined);
    ++joined;
  }
  return {{scratch.from.data(), joined}, {scratch.to.data(), joined}};
}

int64_t Pruner::merge_sequence(const Context& context, const Step& step, int64_t s,
                               const Scratch& scratch, StateRows states) {
  const RowSpan rows = alive(s);
  const Score& score = plan_->scores[static_cast<std::size_t>(step.score)];
  if (score.attention != 0.0f) {
    // The mean of two logarithms is the logarithm of the geometric mean of what both receive.
    const float* received = score_array(step.score);
    for (int32_t r = rows.begin; r < rows.begin + rows.count; ++r) {
      match_bias_[r] = -0.5f * score.attention * std::log(received[r] + kLeastAttention);
    }
    states.bias = match_bias_.data();
  }
  const bool alternates = step.matching == Matching::kBipartite;
  const bool compares_all = step.matching == Matching::kAllPairs;
  const Sides sides = alternates     ? alternate(s, scratch)
                      : compares_all ? join_sequence(context, step, s, scratch, states)
                                     : rank_energies(context, step, s, scratch, states);
  const std::span<const int32_t> from = sides.from;
  const int64_t all_pairs = int64_t{rows.count} * (rows.count - 1) / 2;
  if (from.empty() || sides.to.empty()) return compares_all ? all_pairs * states.cols : 0;
  if (!compares_all) {
    best_matches(context, scratch.match, states, from, sides.to,
                 {.partner = scratch.partner.data(), .similarity = scratch.similarity.data()});
  }
  std::fill_n(scratch.keep.data(), rows.count, uint8_t{0});
  if (alternates) {
    // What merging a token loses decides as an importance would; nothing else may leave.
    for (int32_t i = 0; i < rows.count; ++i) {
      scratch.is_protected[i] = 1;
      scratch.score[i] = 0.0f;
      scratch.position[i] = position_[rows.begin + i];
    }
    for (std::size_t i = 0; i < from.size(); ++i) {
      const int32_t index = from[i] - rows.begin;
      scratch.is_protected[index] = 0;
      scratch.score[index] = -scratch.similarity[i];
    }
    select_tokens(step.select,
                  {.score = scratch.score.data(),
                   .is_protected = scratch.is_protected.data(),
                   .position = scratch.position.data(),
                   .count = rows.count,
                   .initial_length = batch_.length(s),
                   .choice = 0},
                  scratch.order.data(), scratch.keep.data());
  }
  const auto target = [&](std::size_t i) {
    return sides.to[static_cast<std::size_t>(scratch.partner[i])];
  };
  const auto stays = [&](std::size_t i) { return scratch.keep[from[i] - rows.begin] != 0; };
  for (std::size_t i = 0; i < from.size(); ++i) {
    if (stays(i)) continue;
    int32_t& first = leader_[target(i)];
    first = std::min(first, from[i]);
  }
  for (std::size_t i = 0; i < from.size(); ++i) {
    if (!stays(i)) leader_[from[i]] = leader_[target(i)];
  }
  if (trace_) {
    std::vector<float>& scores =
        trace_->scores[static_cast<std::size_t>(step.layer)][static_cast<std::size_t>(s)];
    for (std::size_t i = 0; i < from.size(); ++i) {
      scores[static_cast<std::size_t>(position_[from[i]])] = scratch.similarity[i];
    }
  }
  if (compares_all) return all_pairs * states.cols;
  const int64_t ranked = alternates ? 0 : rows.count * rows.count;
  return (std::ssize(from) * std::ssize(sides.to) + ranked) * states.cols;
}

// Groups of neighbours among the unprotected rows.
void Pruner::pool_sequence(const Step& step, int64_t s, const Scratch& scratch) {
  const RowSpan rows = alive(s);
  int64_t count = 0;
  for (int32_t row = rows.begin; row < rows.begin + rows.count; ++row) {
    if (is_mergeable(s, row)) scratch.from[count++] = row;
  }
  if (count == 0) return;
  const int64_t others = rows.count - count;
  const int64_t left = tokens_left(step.select, rows.count, batch_.length(s));
  const Selector& select = step.select;
  const bool strides =
      select.kind == SelectKind::kStride &&
      (select.max_tokens == 0 || others + ceil_div(count, select.k) <= select.max_tokens);
  const int64_t groups = std::clamp<int64_t>(left - others, 1, count);
  int64_t group = 0;
  for (int64_t i = 0, first = 0; i < count; ++i) {
    const int64_t begin = strides ? group * select.k : group * count / groups;
    if (i == begin) {
      first = i;
      ++group;
    }
    leader_[scratch.from[i]] = scratch.from[first];
  }
}

void Pruner::combine_sequence(const Context& context, const Step& step, int64_t s,
                              const Scratch& scratch, const StateRows& states) {
  const RowSpan rows = alive(s);
  std::iota(leader_.data() + rows.begin, leader_.data() + rows.begin + rows.count, rows.begin);
  match_macs_[s] = 0;
  if (can_drop(step, s)) {
    if (step.action == Action::kPool) {
      pool_sequence(step, s, scratch);
    } else {
      match_macs_[s] = merge_sequence(context, step, s, scratch, states);
    }
  }
  int32_t kept = 0;
  int32_t* list = list_.data() + begin_[s];
  for (int32_t row = rows.begin; row < rows.begin + rows.count; ++row) {
    if (leader_[row] == row) list[kept++] = row;
  }
  list_count_[s] = kept;
}

// The entries of the map for sequence s: the rows of every leader, weighted by their sizes.
void Pruner::append_groups(int64_t s, int32_t* entries, int32_t* row) {
  const RowSpan rows = alive(s);
  const std::span<const int32_t> leaders = kept(s);
  int32_t* next = swap_int_.data();  // by row: where the next entry of its group goes
  for (int32_t r = rows.begin; r < rows.begin + rows.count; ++r) next[r] = 0;
  for (int32_t r = rows.begin; r < rows.begin + rows.count; ++r) ++next[leader_[r]];
  for (const int32_t leader : leaders) {
    const int32_t members = next[leader];
    next[leader] = *entries;
    *entries += members;
    map_source_[*row] = leader;
    map_begin_[++*row] = *entries;
  }
  for (int32_t r = rows.begin; r < rows.begin + rows.count; ++r) {
    map_column_[next[leader_[r]]++] = r;
  }
  for (int64_t i = *row - std::ssize(leaders); i < *row; ++i) {
    float total = 0.0f;
    for (int32_t e = map_begin_[i]; e < map_begin_[i + 1]; ++e) total += size_[map_column_[e]];
    for (int32_t e = map_begin_[i]; e < map_begin_[i + 1]; ++e) {
      map_weight_[e] = size_[map_column_[e]] / total;
    }
  }
}

}  // namespace tokprune
