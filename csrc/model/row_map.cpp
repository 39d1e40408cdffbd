// Pruner::close_site: from decisions to the reduce map, and the row state carried through it.
#include <algorithm>
#include <cmath>

#include "model/pruner.h"

namespace tokprune {
namespace {

// values[i] = values[source[i]]; `source` ascends, so in place is safe.
template <class T>
void compact(T* values, const RowMap& map) {
  for (int64_t i = 0; i < map.rows; ++i) values[i] = values[map.source[i]];
}

// values[i] = weighted (or plain) sum over the entries of row i.
void reduce(float* values, float* scratch, const RowMap& map, bool weighted) {
  for (int64_t i = 0; i < map.rows; ++i) {
    float sum = 0.0f;
    for (int32_t e = map.row_begin[i]; e < map.row_begin[i + 1]; ++e) {
      sum += (weighted ? map.weight[e] : 1.0f) * values[map.column[e]];
    }
    scratch[i] = sum;
  }
  std::copy_n(scratch, map.rows, values);
}

}  // namespace

void Pruner::append_package(int64_t s, int32_t* entries, int32_t* row) {
  const std::span<const int32_t> members = dropped(s);
  if (members.empty()) return;
  const float* weight = dropped_weight_.data() + begin_[s];
  double total = 0;
  for (std::size_t i = 0; i < members.size(); ++i) total += weight[i];
  const bool uniform = !(total > 0);
  int32_t first = members[0];
  for (std::size_t i = 0; i < members.size(); ++i) {
    map_column_[*entries] = members[i];
    map_weight_[*entries] =
        uniform ? 1.0f / static_cast<float>(members.size()) : static_cast<float>(weight[i] / total);
    ++*entries;
    if (position_[members[i]] < position_[first]) first = members[i];
  }
  map_source_[*row] = first;
  map_begin_[++*row] = *entries;
}

// Which row holds each token after the map.
void Pruner::follow_tokens(const RowMap& map) {
  std::vector<int32_t> after(static_cast<std::size_t>(rows()), -1);
  for (int32_t i = 0; i < map.rows; ++i) {
    if (!map.weighted) {
      after[static_cast<std::size_t>(map.source[i])] = i;
      continue;
    }
    for (int32_t e = map.row_begin[i]; e < map.row_begin[i + 1]; ++e) {
      after[static_cast<std::size_t>(map.column[e])] = i;
    }
  }
  for (int32_t& row : holder_) row = row < 0 ? -1 : after[static_cast<std::size_t>(row)];
}

RowMap Pruner::close_site() {
  int32_t row = 0;
  int32_t entries = 0;
  map_begin_[0] = 0;
  const auto single = [&](int32_t source) {
    map_source_[row] = source;
    map_column_[entries] = source;
    map_weight_[entries++] = 1.0f;
    map_begin_[++row] = entries;
  };
  for (int64_t s = 0; s < sequences_; ++s) {
    new_begin_[s] = row;
    if (merge_) {
      append_groups(s, &entries, &row);
      continue;
    }
    if (passive_[s] || turned_passive_[s]) single(begin_[s]);
    for (int32_t source : kept(s)) single(source);
    if (package_) append_package(s, &entries, &row);
    passive_[s] |= turned_passive_[s];
  }
  new_begin_[sequences_] = row;

  RowMap map{.rows = row,
             .source = map_source_.data(),
             .weighted = package_ || merge_,
             .row_begin = map_begin_.data(),
             .column = map_column_.data(),
             .weight = map_weight_.data()};
  // A later mid step may still ask for the scores of the layer before.
  const auto for_each_score = [&](const auto& carry) {
    const int64_t scores = plan_ ? std::ssize(plan_->scores) : 0;
    for (int64_t i = 0; i < scores; ++i) {
      carry(score_array(i));
      if (plan_->scores[static_cast<std::size_t>(i)].from_previous) carry(previous_array(i));
    }
  };
  if (map.weighted) {
    for (int32_t* values : {token_.data(), position_.data(), segment_.data()}) {
      for (int64_t i = 0; i < map.rows; ++i) swap_int_[i] = values[map.source[i]];
      std::copy_n(swap_int_.data(), map.rows, values);
    }
    reduce(size_.data(), swap_float_.data(), map, /*weighted=*/false);
    for_each_score(
        [&](float* values) { reduce(values, swap_float_.data(), map, /*weighted=*/true); });
  } else if (row < rows()) {
    compact(token_.data(), map);
    compact(position_.data(), map);
    compact(segment_.data(), map);
    compact(size_.data(), map);
    for_each_score([&](float* values) { compact(values, map); });
  }
  has_log_size_ |= merge_ && plan_->log_size;
  for (int64_t i = 0; has_log_size_ && i < map.rows; ++i) log_size_[i] = std::log(size_[i]);
  if (trace_) follow_tokens(map);
  std::copy_n(new_begin_.data(), sequences_ + 1, begin_.data());
  return map;
}

}  // namespace tokprune
