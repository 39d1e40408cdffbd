// A compiled pruning policy: what Python's policy format becomes for one profile.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/weights.h"
#include "ops/mlp.h"
#include "ops/score.h"
#include "ops/select.h"

namespace tokprune {

enum class ScoreKind : uint8_t {
  kAttentionColumn,
  kAttentionCls,
  kAttentionCumulative,
  kRowEntropy,
  kColumnEntropy,
  kTable,
  kRandom,
  kGate,
  kSimilarity,  // of pairs of tokens, for merging
  kUniform,     // none, for pooling
};
enum class Site : uint8_t {
  kEmbed,  // after the embeddings
  kPre,    // before the layer
  kMid,    // after its softmax, before P V and the output projection
  kPost,   // after the layer
};
enum class Action : uint8_t {
  kDrop,
  kRestore,  // drop, and give the last full state back in the final output
  kPackage,  // dropped tokens become one weighted-mean row
  kMerge,    // similar tokens become one row, weighted by size
  kPool,     // neighbouring tokens become one row, likewise
};
// Whether an action makes rows of the states that follow attention, LayerNorm included.
constexpr bool combines(Action action) { return action >= Action::kPackage; }

// How kMerge finds its pairs.
enum class Matching : uint8_t { kNone, kBipartite, kEnergyPairs, kAllPairs };
enum class OutputKind : uint8_t { kNone, kCls, kMean, kTokens };
enum class OutputOver : uint8_t { kKept, kSize, kRestored };

struct Score {
  ScoreKind kind = ScoreKind::kAttentionColumn;
  HeadReduction heads = HeadReduction::kMean;
  bool diagonal = true;
  Statistic::Query query = Statistic::Query::kAlive;
  int32_t segment = 0;
  ScoreNorm norm = ScoreNorm::kNone;
  float norm_constant = 1.0f;
  bool from_previous = false;  // at mid: taken from the layer before
  float decay = 1.0f;
  float sign = 1.0f;  // of an entropy
  bool value_norm = false;
  std::vector<float> table;
  bool by_position = false;  // table index: position instead of token id
  uint64_t seed = 0;
  // kGate: logit of the token's state; of two outputs, the second minus the first.
  std::map<int32_t, std::shared_ptr<const Mlp>> gates;  // by layer of the step
  bool softmax = false;                                 // of the logits over the alive tokens
  // kSimilarity: of head-mean keys, not of hidden states; and how much it falls with the logarithm
  // of the attention that the two tokens receive.
  bool keys = false;
  float attention = 0.0f;

  bool from_attention() const {
    return kind <= ScoreKind::kColumnEntropy ||
           (kind == ScoreKind::kSimilarity && attention != 0.0f);
  }
};

struct Step {
  int32_t layer = 0;
  Site site = Site::kMid;
  int32_t score = 0;
  Selector select;
  Action action = Action::kDrop;
  Matching matching = Matching::kNone;
  float margin = 0.0f, alpha = 1.0f;          // of kEnergyPairs
  std::shared_ptr<const Mlp> predictor = {};  // chooses the ratio from the first token's state

  // Derived by Plan::finish().
  std::shared_ptr<const Mlp> gate = {};  // of its score, which reads the states before the step
};

// Packs a perceptron: tensors hidden.weight [h, d], hidden.bias [h], output.weight [o, h] and
// output.bias [o]. Throws std::invalid_argument, beginning with `name`, for anything else.
std::shared_ptr<const Mlp> make_mlp(const TensorMap& tensors, const std::string& activation,
                                    const std::string& name);

struct Plan {
  int64_t layers = 0;
  bool protect_first = false;
  bool protect_last = false;
  std::vector<int32_t> protect_tokens;
  int32_t protect_segment = -1;
  int64_t skip_below = 0;
  bool passive_first = false;  // a dropped first token goes on without attention context
  bool log_size = false;       // attention scores of a key get + ln(tokens it stands for)
  OutputKind output = OutputKind::kNone;
  OutputOver over = OutputOver::kKept;
  std::vector<Score> scores;
  std::vector<Step> steps;  // in order of execution

  // Derived by finish().
  std::vector<std::vector<int32_t>> attention_scores;  // [layer] scores to take from its attention
  std::vector<uint8_t> scores_are_own;           // [layer] ... that only its own mid steps read
  std::vector<std::span<const Step>> mid_steps;  // [layer]
  // [layer] steps between layer - 1 and layer: post(layer - 1), then embed and pre(layer).
  std::vector<std::span<const Step>> post_steps;
  std::vector<std::span<const Step>> pre_steps;
  std::vector<uint8_t> combines_mid;  // [layer] some mid step combines rows
  bool restores = false;              // some action is kRestore
  bool merges = false;                // some action is kMerge or kPool

  // Checks the plan and derives the per-layer views. Throws std::invalid_argument.
  void finish();
  // Checks it against a model. Throws std::invalid_argument.
  void check_fits(const EncoderConfig& config) const;

  Plan() = default;
  Plan(const Plan&) = delete;  // the views point into steps
  Plan& operator=(const Plan&) = delete;
};

}  // namespace tokprune
