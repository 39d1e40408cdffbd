// The rows that are alive in one forward pass, and the decisions that shrink them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "model/batch.h"
#include "model/policy.h"
#include "ops/attention.h"
#include "ops/match.h"

namespace tokprune {

// What trace=True records, by layer and sequence.
struct Trace {
  std::vector<std::vector<std::vector<int32_t>>> kept;  // original positions after the layer
  std::vector<std::vector<std::vector<float>>> scores;  // by original position; NaN = no score
  // By original position: the position of the row that holds the token after the layer; -1: none.
  std::vector<std::vector<std::vector<int32_t>>> rows;
};

// How the rows after a decision are made from the rows before it, in CSR form.
struct RowMap {
  int64_t rows = 0;                    // rows after
  const int32_t* source = nullptr;     // drop: row before, for every row after
  bool weighted = false;               // some row after is a weighted sum
  const int32_t* row_begin = nullptr;  // weighted: [rows + 1]
  const int32_t* column = nullptr;
  const float* weight = nullptr;
};

class Pruner {
 public:
  Pruner() = default;
  struct Sizes {
    int64_t tokens = 0;
    int64_t sequences = 0;
    int64_t scores = 0;
    int64_t threads = 1;
    bool merges = false;
  };
  Pruner(const EncoderConfig& config, const Sizes& most);

  // Starts a forward pass with one row per token. `trace` may be null.
  void start(const RaggedBatch& batch, const Plan* plan, Trace* trace);

  int64_t rows() const { return begin_[sequences_]; }
  int64_t sequences() const { return sequences_; }
  int64_t row_begin(int64_t s) const { return begin_[s]; }
  int64_t row_count(int64_t s) const { return begin_[s + 1] - begin_[s]; }
  // Rows that are keys and voters: all but a first token that was dropped and goes on passively.
  RowSpan alive(int64_t s) const {
    const int32_t first = begin_[s] + (passive_[s] ? 1 : 0);
    return {first, begin_[s + 1] - first};
  }
  std::span<const RowSpan> alive_spans();
  bool passive(int64_t s) const { return passive_[s] != 0; }
  const uint8_t* passive_flags() const { return passive_.data(); }
  const int32_t* row_begins() const { return begin_.data(); }
  const int32_t* token() const { return token_.data(); }        // index into the batch's tokens
  const int32_t* position() const { return position_.data(); }  // original position
  const int32_t* segment() const { return segment_.data(); }
  const float* size() const { return size_.data(); }  // tokens a row stands for
  // By row, what the attention scores of a key get added; null while no row has merged.
  const float* key_bias() const { return has_log_size_ ? log_size_.data() : nullptr; }

  // Whether any of `steps` could drop a token of any sequence, whatever the scores. Always true
  // while a trace records the scores.
  bool can_drop(std::span<const Step> steps) const;
  bool can_drop(const Step& step, int64_t s) const;  // of sequence s

  // Importance statistics of the layer that is about to run its attention.
  std::span<const Statistic> statistics(int64_t layer);
  // Turns them into scores. `attention` gives access to the values (value_norm).
  void take_scores(const Context& context, int64_t layer, const AttentionArgs& attention,
                   int64_t first, int64_t last);

  // Scores of rows [first, first + count) from the output of the step's gate, [count, ld].
  void take_gate(const Step& step, int64_t first, int64_t count, const float* logits, int64_t ld);

  // Which ratio the step's predictor chose for sequence s, from its outputs; ties: the first.
  void take_prediction(const Step& step, int64_t s, const float* logits);

  // One site: open it, decide step by step, close it. Between open and close, kept(s) lists the
  // surviving rows of a sequence and dropped(s) those the last step removed. A step that combines
  // rows is the only one of its site. Merging compares `states`. Returns multiply-adds.
  void open_site();
  int64_t decide(const Context& context, const Step& step, int64_t first, int64_t last,
                 const StateRows& states = {});
  std::span<const int32_t> kept(int64_t s) const;
  // kept(s), and before it a first token that turns passive at this site.
  std::span<const int32_t> context_rows(int64_t s) const;
  std::span<const int32_t> dropped(int64_t s) const;
  // Applies the decisions to the row state. The map stays valid until the next open_site.
  RowMap close_site();

  // Records the rows alive after `layer`.
  void record_kept(int64_t layer, int32_t* counts);

 private:
  struct Scratch {
    AlignedArray<float> score;
    AlignedArray<uint8_t> is_protected;
    AlignedArray<int32_t> position;
    AlignedArray<uint8_t> keep;
    AlignedArray<uint64_t> order;
    // Of merging.
    AlignedArray<int32_t> from, to, partner;
    AlignedArray<float> similarity;
    MatchScratch match;
  };
  // The rows that may merge, and those that they may merge into.
  struct Sides {
    std::span<const int32_t> from, to;
  };

  bool is_protected(int64_t s, int64_t row) const;
  void decide_sequence(const Step& step, int64_t s, const Scratch& scratch);
  void read_scores(const Step& step, int64_t s, std::span<const int32_t> rows, float* out) const;
  const float* score_values(const Step& step) const;
  // row_map.cpp
  void append_package(int64_t s, int32_t* entries, int32_t* row);
  // merging.cpp
  bool is_mergeable(int64_t s, int64_t row) const;
  Sides alternate(int64_t s, const Scratch& scratch) const;
  Sides rank_energies(const Context& context, const Step& step, int64_t s, const Scratch& scratch,
                      const StateRows& states) const;
  Sides join_sequence(const Context& context, const Step& step, int64_t s, const Scratch& scratch,
                      const StateRows& states) const;
  int64_t merge_sequence(const Context& context, const Step& step, int64_t s,
                         const Scratch& scratch, StateRows states);
  void pool_sequence(const Step& step, int64_t s, const Scratch& scratch);
  void combine_sequence(const Context& context, const Step& step, int64_t s, const Scratch& scratch,
                        const StateRows& states);
  void append_groups(int64_t s, int32_t* entries, int32_t* row);
  void follow_tokens(const RowMap& map);
  float* score_array(int64_t score) const { return scores_.data() + score * max_tokens_; }
  float* previous_array(int64_t score) const { return previous_.data() + score * max_tokens_; }

  int64_t max_tokens_ = 0;
  int64_t heads_ = 0;
  AttentionShape shape_;
  RaggedBatch batch_;
  const Plan* plan_ = nullptr;
  Trace* trace_ = nullptr;
  std::vector<int32_t> holder_;  // with a trace: the row that holds each token; -1: none
  int64_t sequences_ = 0;

  AlignedArray<int32_t> begin_;  // [sequences + 1]
  AlignedArray<uint8_t> passive_;
  AlignedArray<int32_t> token_, position_, segment_;
  AlignedArray<float> size_, log_size_;
  bool has_log_size_ = false;
  AlignedArray<float> scores_, previous_;  // [scores][max_tokens] by row
  AlignedArray<float> sums_;               // [scores][heads][max_tokens]
  std::vector<Statistic> statistics_;
  int64_t statistic_count_ = 0;
  AlignedArray<RowSpan> alive_;

  // The open site. Segment s of list_ starts at begin_[s]; dropped rows are listed likewise.
  AlignedArray<int32_t> list_, dropped_list_;
  AlignedArray<float> dropped_weight_;
  AlignedArray<int32_t> list_count_, dropped_count_;
  AlignedArray<uint8_t> turned_passive_;
  AlignedArray<int32_t> choice_;  // of predicted_ratio
  AlignedArray<int32_t> leader_;  // of merging and pooling: first row of the group of a row
  AlignedArray<float> match_bias_;
  AlignedArray<int64_t> match_macs_;  // [sequences]
  bool package_ = false;
  bool merge_ = false;

  // The map of the closed site, and space to permute the row state.
  AlignedArray<int32_t> map_source_, map_begin_, map_column_, new_begin_;
  AlignedArray<float> map_weight_;
  AlignedArray<int32_t> swap_int_;
  AlignedArray<float> swap_float_;
  std::vector<Scratch> scratch_;
};

}  // namespace tokprune
