#include "model/pruner.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "base/math.h"

namespace tokprune {
namespace {

Statistic::Kind kind_of(ScoreKind kind) {
  if (kind == ScoreKind::kRowEntropy) return Statistic::Kind::kRowEntropy;
  if (kind == ScoreKind::kColumnEntropy) return Statistic::Kind::kColumnEntropy;
  return Statistic::Kind::kColumnSum;
}

}  // namespace

Pruner::Pruner(const EncoderConfig& config, const Sizes& most)
    : max_tokens_(round_up(most.tokens, kernels::kPanel)), heads_(config.heads) {
  shape_.heads = config.heads;
  shape_.head_dim = config.head_dim();
  const auto tokens = static_cast<std::size_t>(max_tokens_);
  const auto sequences = static_cast<std::size_t>(most.sequences);
  const auto scores = static_cast<std::size_t>(most.scores);
  begin_ = AlignedArray<int32_t>(sequences + 1);
  new_begin_ = AlignedArray<int32_t>(sequences + 1);
  passive_ = AlignedArray<uint8_t>(sequences);
  turned_passive_ = AlignedArray<uint8_t>(sequences);
  choice_ = AlignedArray<int32_t>(sequences);
  alive_ = AlignedArray<RowSpan>(sequences);
  list_count_ = AlignedArray<int32_t>(sequences);
  dropped_count_ = AlignedArray<int32_t>(sequences);
  for (AlignedArray<int32_t>* array : {&token_, &position_, &segment_, &list_, &dropped_list_,
                                       &map_source_, &map_column_, &swap_int_}) {
    *array = AlignedArray<int32_t>(tokens);
  }
  map_begin_ = AlignedArray<int32_t>(tokens + 1);
  for (AlignedArray<float>* array : {&size_, &dropped_weight_, &map_weight_, &swap_float_}) {
    *array = AlignedArray<float>(tokens);
  }
  scores_ = AlignedArray<float>(scores * tokens);
  previous_ = AlignedArray<float>(scores * tokens);
  sums_ = AlignedArray<float>(scores * static_cast<std::size_t>(heads_) * tokens);
  statistics_.resize(scores);
  if (most.merges) {
    log_size_ = AlignedArray<float>(tokens);
    leader_ = AlignedArray<int32_t>(tokens);
    match_bias_ = AlignedArray<float>(tokens);
    match_macs_ = AlignedArray<int64_t>(sequences);
  }
  if (most.scores == 0) return;
  const auto longest = static_cast<std::size_t>(std::min(config.max_positions, most.tokens));
  for (int64_t i = 0; i < most.threads; ++i) {
    Scratch scratch;
    scratch.score = AlignedArray<float>(longest);
    scratch.is_protected = AlignedArray<uint8_t>(longest);
    scratch.position = AlignedArray<int32_t>(longest);
    scratch.keep = AlignedArray<uint8_t>(longest);
    scratch.order = AlignedArray<uint64_t>(longest);
    if (most.merges) {
      for (AlignedArray<int32_t>* array : {&scratch.from, &scratch.to, &scratch.partner}) {
        *array = AlignedArray<int32_t>(longest);
      }
      scratch.similarity = AlignedArray<float>(longest);
      scratch.match = MatchScratch(static_cast<int64_t>(longest), config.hidden);
    }
    scratch_.push_back(std::move(scratch));
  }
}

void Pruner::start(const RaggedBatch& batch, const Plan* plan, Trace* trace) {
  batch_ = batch;
  plan_ = plan;
  trace_ = trace;
  sequences_ = batch.sequences;
  statistic_count_ = 0;
  has_log_size_ = false;
  int32_t row = 0;
  for (int64_t s = 0; s < sequences_; ++s) {
    begin_[s] = row;
    passive_[s] = 0;
    for (int32_t i = 0; i < batch.length(s); ++i, ++row) {
      token_[row] = row;
      position_[row] = i;
      segment_[row] = batch.segment(row);
      size_[row] = 1.0f;
    }
  }
  begin_[sequences_] = row;
  if (trace_) holder_.assign(token_.data(), token_.data() + row);
  if (plan) {
    for (std::size_t i = 0; i < plan->scores.size(); ++i) {
      std::fill_n(score_array(static_cast<int64_t>(i)), row, 0.0f);
    }
  }
}

std::span<const RowSpan> Pruner::alive_spans() {
  for (int64_t s = 0; s < sequences_; ++s) alive_[s] = alive(s);
  return {alive_.data(), static_cast<std::size_t>(sequences_)};
}

bool Pruner::can_drop(std::span<const Step> steps) const {
  for (const Step& step : steps) {
    for (int64_t s = 0; s < sequences_; ++s) {
      if (can_drop(step, s)) return true;
    }
  }
  return false;
}

bool Pruner::can_drop(const Step& step, int64_t s) const {
  const int64_t length = batch_.length(s);
  if (length < plan_->skip_below) return false;
  return trace_ || tokprune::can_drop(step.select, alive(s).count, length);
}

std::span<const Statistic> Pruner::statistics(int64_t layer) {
  statistic_count_ = 0;
  if (!plan_) return {};
  for (int32_t index : plan_->attention_scores[static_cast<std::size_t>(layer)]) {
    const Score& score = plan_->scores[static_cast<std::size_t>(index)];
    Statistic& statistic = statistics_[static_cast<std::size_t>(statistic_count_)];
    const bool cls = score.kind == ScoreKind::kAttentionCls;
    statistic.kind = kind_of(score.kind);
    statistic.query = cls ? Statistic::Query::kFirst : score.query;
    statistic.diagonal = score.diagonal;
    statistic.segment = score.segment;
    statistic.sum = sums_.data() + statistic_count_ * heads_ * max_tokens_;
    statistic.ld = max_tokens_;
    ++statistic_count_;
    // A mid step may ask for the scores of the layer before after this layer's are taken.
    std::copy_n(score_array(index), rows(), previous_array(index));
  }
  return {statistics_.data(), static_cast<std::size_t>(statistic_count_)};
}

void Pruner::take_scores(const Context& context, int64_t layer, const AttentionArgs& attention,
                         int64_t first, int64_t last) {
  const std::vector<int32_t>& needed = plan_->attention_scores[static_cast<std::size_t>(layer)];
  for (std::size_t i = 0; i < needed.size(); ++i) {
    const Score& score = plan_->scores[static_cast<std::size_t>(needed[i])];
    float* values = score_array(needed[i]);
    const bool cumulative = score.kind == ScoreKind::kAttentionCumulative;
    HeadReductionArgs args;
    args.statistic = &statistics_[i];
    args.reduction = score.kind == ScoreKind::kAttentionCls ? HeadReduction::kMean : score.heads;
    args.sign = score.sign;
    args.value_norm = score.value_norm ? &attention : nullptr;
    args.score = cumulative ? swap_float_.data() : values;
    const auto count = static_cast<std::size_t>(last - first);
    reduce_heads(context, {alive_.data() + first, count}, shape_, args);
    for (int64_t s = first; cumulative && s < last; ++s) {
      const RowSpan rows = alive_[s];
      for (int32_t r = rows.begin; r < rows.begin + rows.count; ++r) {
        values[r] = score.decay * values[r] + swap_float_[r];
      }
    }
  }
}

void Pruner::take_gate(const Step& step, int64_t first, int64_t count, const float* logits,
                       int64_t ld) {
  float* values = score_array(step.score) + first;
  const bool pair = step.gate->outputs() == 2;
  for (int64_t i = 0; i < count; ++i) {
    const float* logit = logits + i * ld;
    values[i] = pair ? logit[1] - logit[0] : logit[0];
  }
}

void Pruner::take_prediction(const Step& step, int64_t s, const float* logits) {
  const int64_t count = step.predictor->outputs();
  choice_[s] = static_cast<int32_t>(std::max_element(logits, logits + count) - logits);
}

bool Pruner::is_protected(int64_t s, int64_t row) const {
  const int32_t position = position_[row];
  const int32_t token = token_[row];
  if (plan_->protect_first && position == 0) return true;
  if (plan_->protect_last && position == batch_.length(s) - 1) return true;
  if (plan_->protect_segment >= 0 && segment_[row] == plan_->protect_segment) return true;
  if (batch_.protect && batch_.protect[token]) return true;
  const std::vector<int32_t>& ids = plan_->protect_tokens;
  return std::find(ids.begin(), ids.end(), batch_.input_ids[token]) != ids.end();
}

void Pruner::open_site() {
  package_ = false;
  merge_ = false;
  for (int64_t s = 0; s < sequences_; ++s) {
    const RowSpan rows = alive(s);
    for (int32_t i = 0; i < rows.count; ++i) list_[begin_[s] + i] = rows.begin + i;
    list_count_[s] = rows.count;
    dropped_count_[s] = 0;
    turned_passive_[s] = 0;
    choice_[s] = 0;
  }
}

const float* Pruner::score_values(const Step& step) const {
  const Score& score = plan_->scores[static_cast<std::size_t>(step.score)];
  // Scores of this layer's attention have replaced the ones a `previous` mid step wants, if taken.
  const auto& taken = plan_->attention_scores[static_cast<std::size_t>(step.layer)];
  const bool replaced = std::find(taken.begin(), taken.end(), step.score) != taken.end();
  const bool previous = step.site == Site::kMid && score.from_previous && replaced;
  return previous ? previous_array(step.score) : score_array(step.score);
}

void Pruner::read_scores(const Step& step, int64_t s, std::span<const int32_t> rows,
                         float* out) const {
  const Score& score = plan_->scores[static_cast<std::size_t>(step.score)];
  if (score.from_attention() || score.kind == ScoreKind::kGate) {
    const float* values = score_values(step);
    for (std::size_t i = 0; i < rows.size(); ++i) out[i] = values[rows[i]];
    return;
  }
  if (score.kind == ScoreKind::kTable) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const int32_t index =
          score.by_position ? position_[rows[i]] : batch_.input_ids[token_[rows[i]]];
      out[i] = score.table[static_cast<std::size_t>(index)];
    }
    return;
  }
  const auto length = static_cast<std::size_t>(batch_.length(s));
  const uint64_t state =
      random_score_state(score.seed, {batch_.input_ids + batch_.begin(s), length});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    out[i] = random_score(state, step.layer, position_[rows[i]]);
  }
}

int64_t Pruner::decide(const Context& context, const Step& step, int64_t first, int64_t last,
                       const StateRows& states) {
  const bool merges = step.action == Action::kMerge || step.action == Action::kPool;
  package_ |= step.action == Action::kPackage;
  merge_ |= merges;
  context.pool->for_each(last - first, [&](int64_t i, int part) {
    const Scratch& scratch = scratch_[static_cast<std::size_t>(part)];
    if (merges) {
      combine_sequence(context, step, first + i, scratch, states);
    } else {
      decide_sequence(step, first + i, scratch);
    }
  });
  if (!merges) return 0;
  return std::accumulate(match_macs_.data() + first, match_macs_.data() + last, int64_t{0});
}

void Pruner::decide_sequence(const Step& step, int64_t s, const Scratch& scratch) {
  int32_t* list = list_.data() + begin_[s] + turned_passive_[s];
  int32_t* dropped = dropped_list_.data() + begin_[s];
  const int32_t count = list_count_[s];
  dropped_count_[s] = 0;
  if (count == 0 || batch_.length(s) < plan_->skip_below) return;
  read_scores(step, s, {list, static_cast<std::size_t>(count)}, scratch.score.data());
  for (int32_t i = 0; i < count; ++i) {
    scratch.is_protected[i] = is_protected(s, list[i]);
    scratch.position[i] = position_[list[i]];
  }
  const Score& score = plan_->scores[static_cast<std::size_t>(step.score)];
  normalise_scores(scratch.score.data(), count,
                   {.norm = score.norm,
                    .constant = score.norm_constant,
                    .initial_length = batch_.length(s),
                    .is_protected = scratch.is_protected.data()});
  if (score.softmax) softmax_scores(scratch.score.data(), count);
  if (trace_) {
    std::vector<float>& scores =
        trace_->scores[static_cast<std::size_t>(step.layer)][static_cast<std::size_t>(s)];
    for (int32_t i = 0; i < count; ++i) {
      scores[static_cast<std::size_t>(position_[list[i]])] = scratch.score[i];
    }
  }
  select_tokens(step.select,
                {.score = scratch.score.data(),
                 .is_protected = scratch.is_protected.data(),
                 .position = scratch.position.data(),
                 .count = count,
                 .initial_length = batch_.length(s),
                 .choice = choice_[s]},
                scratch.order.data(), scratch.keep.data());
  int32_t kept = 0;
  int32_t removed = 0;
  int32_t* survivors = list;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t row = list[i];
    if (scratch.keep[i]) {
      survivors[kept++] = row;
    } else if (plan_->passive_first && position_[row] == 0) {
      // Always the first of the list, where it stays; the survivors follow it.
      turned_passive_[s] = 1;
      ++survivors;
    } else {
      dropped[removed] = row;
      dropped_weight_[begin_[s] + removed++] = scratch.score[i];
    }
  }
  list_count_[s] = kept;
  dropped_count_[s] = removed;
}

std::span<const int32_t> Pruner::kept(int64_t s) const {
  return context_rows(s).subspan(turned_passive_[s]);
}

std::span<const int32_t> Pruner::context_rows(int64_t s) const {
  return {list_.data() + begin_[s], static_cast<std::size_t>(list_count_[s] + turned_passive_[s])};
}

std::span<const int32_t> Pruner::dropped(int64_t s) const {
  return {dropped_list_.data() + begin_[s], static_cast<std::size_t>(dropped_count_[s])};
}

void Pruner::record_kept(int64_t layer, int32_t* counts) {
  for (int64_t s = 0; s < sequences_; ++s) {
    const RowSpan rows = alive(s);
    counts[s] = rows.count;
    if (!trace_) continue;
    const auto at = [&](auto& layers) -> auto& {
      return layers[static_cast<std::size_t>(layer)][static_cast<std::size_t>(s)];
    };
    at(trace_->kept)
        .assign(position_.data() + rows.begin, position_.data() + rows.begin + rows.count);
    for (int64_t i = 0; i < batch_.length(s); ++i) {
      const int32_t row = holder_[static_cast<std::size_t>(batch_.begin(s) + i)];
      at(trace_->rows).push_back(row < rows.begin ? -1 : position_[row]);
    }
  }
}

}  // namespace tokprune
