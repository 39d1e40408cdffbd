#include "model/policy.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/registry.h"

namespace tokprune {
namespace {

// The steps of one layer and one kind of place; `steps` is ordered by layer, then site.
template <class Matches>
std::span<const Step> find_steps(const std::vector<Step>& steps, const Matches& matches) {
  const auto first = std::find_if(steps.begin(), steps.end(), matches);
  const auto last = std::find_if_not(first, steps.end(), matches);
  return {first, last};
}

void mark(std::vector<std::vector<int32_t>>& needed, int64_t layer, int32_t score) {
  std::vector<int32_t>& list = needed[static_cast<std::size_t>(layer)];
  if (std::find(list.begin(), list.end(), score) == list.end()) list.push_back(score);
}

// What an action asks of its selector and score, and of the rest of the plan.
void check_combination(const Plan& plan, const Step& step, const Score& score) {
  require(!(combines(step.action) && (plan.restores || plan.passive_first)),
          "package, merge and pool can be combined neither with restore nor with a passive first "
          "token");
  const bool merges = step.action == Action::kMerge;
  const bool pools = step.action == Action::kPool;
  require(merges == (step.matching != Matching::kNone) &&
              merges == (score.kind == ScoreKind::kSimilarity),
          "merge, the selectors bipartite, energy_pairs and all_pairs, and similarity scores go "
          "together");
  require(pools == (score.kind == ScoreKind::kUniform), "pool and uniform scores go together");
  require(pools || step.select.kind != SelectKind::kStride, "a stride belongs to pool");
  require(step.select.kind != SelectKind::kStride || step.select.k >= 2, "the stride is ",
          step.select.k, "; expected 2 or more");
  require(!score.keys || step.site == Site::kMid, "similarity of keys exists only at site mid");
  require(score.attention == 0.0f || step.matching != Matching::kEnergyPairs,
          "similarity weighed by attention does not go with energy_pairs");
  require(score.attention == 0.0f || step.site == Site::kMid || step.site == Site::kPost,
          "similarity weighed by attention exists at sites mid and post");
}

void check_step(const Plan& plan, const Step& step) {
  require(step.layer >= 0 && step.layer < plan.layers, "plan step names layer ", step.layer,
          "; expected 0 to ", plan.layers - 1);
  require(step.score >= 0 && step.score < static_cast<int64_t>(plan.scores.size()),
          "plan step names score ", step.score, "; there are ", plan.scores.size());
  const Score& score = plan.scores[static_cast<std::size_t>(step.score)];
  require(step.site != Site::kEmbed || step.layer == 0, "an embed step belongs to layer 0");
  if (score.from_attention()) {
    const bool before_attention =
        step.site == Site::kEmbed || (step.site == Site::kPre && step.layer == 0) ||
        (step.site == Site::kMid && score.from_previous && step.layer == 0);
    require(!before_attention, "no attention has run yet where a plan step of layer ", step.layer,
            " asks for its scores");
    require(!score.value_norm || step.site == Site::kMid,
            "value_norm scores exist only at site mid");
  }
  if (score.kind == ScoreKind::kGate) {
    require(step.site != Site::kMid, "gate scores exist at sites embed, pre and post, not at mid");
    require(score.gates.contains(step.layer), "the gate score of a plan step has no layer ",
            step.layer);
    const int64_t outputs = score.gates.at(step.layer)->outputs();
    require(outputs == 1 || (outputs == 2 && !score.softmax), "the gate of layer ", step.layer,
            " has ", outputs, " outputs; expected 1", score.softmax ? "" : " or 2");
  }
  check_combination(plan, step, score);
  require(plan.passive_first || step.select.min_tokens >= 1,
          "a plan step may keep no token at all; min_tokens must be at least 1");
  const bool predicts = step.select.kind == SelectKind::kPredictedRatio;
  require(predicts == (step.predictor != nullptr), "predicted_ratio and a predictor go together");
  if (predicts) {
    require(step.site != Site::kMid, "predicted_ratio exists at sites embed, pre and post");
    require(plan.protect_first, "predicted_ratio reads the first token, which may leave");
    const auto ratios = static_cast<int64_t>(step.select.ratios.size());
    require(ratios > 0 && step.predictor->outputs() == ratios, "the predictor of layer ",
            step.layer, " has ", step.predictor->outputs(), " outputs; there are ", ratios,
            " ratios");
  }
  require(step.select.kind != SelectKind::kRankBins || !step.select.bits.empty(),
          "rank_bins needs at least one bin");
}

// The tensor `key`, of `rank` dimensions, none of them 0.
const TensorView& tensor_of(const TensorMap& tensors, const std::string& key, std::size_t rank,
                            const std::string& name) {
  const auto it = tensors.find(key);
  require(it != tensors.end(), name, " lacks '", key, "'");
  const std::vector<int64_t>& shape = it->second.shape;
  const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  require(shape.size() == rank && !empty, name, " '", key, "' has shape ", shape_text(shape),
          "; expected ", rank, " dimensions, none of them 0");
  return it->second;
}

}  // namespace

std::shared_ptr<const Mlp> make_mlp(const TensorMap& tensors, const std::string& activation,
                                    const std::string& name) {
  const TensorView& hidden = tensor_of(tensors, "hidden.weight", 2, name);
  const TensorView& output = tensor_of(tensors, "output.weight", 2, name);
  const auto expect = [&](const char* key, const TensorView& found, std::vector<int64_t> shape) {
    require(found.shape == shape, name, " '", key, "' has shape ", shape_text(found.shape),
            "; expected ", shape_text(shape));
    return found.data;
  };
  MlpSource source;
  source.inputs = hidden.shape[1];
  source.hidden = hidden.shape[0];
  source.outputs = output.shape[0];
  source.hidden_weight = hidden.data;
  source.output_weight = expect("output.weight", output, {source.outputs, source.hidden});
  source.hidden_bias =
      expect("hidden.bias", tensor_of(tensors, "hidden.bias", 1, name), {source.hidden});
  source.output_bias =
      expect("output.bias", tensor_of(tensors, "output.bias", 1, name), {source.outputs});
  source.activation = kernels::bias_activation(activation);
  // Packed weights have one layout for all levels, and a plan belongs to none.
  ThreadPool alone(1);
  const Context context{&kernels::table_for(IsaLevel::kScalar), &alone};
  return std::make_shared<const Mlp>(context, source);
}

void Plan::finish() {
  require(layers > 0, "plan 'layers' is ", layers, "; expected a positive number");
  require(!(passive_first && protect_first),
          "a protected first token cannot also be passive after being dropped");
  restores = std::any_of(steps.begin(), steps.end(),
                         [](const Step& s) { return s.action == Action::kRestore; });
  require(std::is_sorted(steps.begin(), steps.end(),
                         [](const Step& a, const Step& b) {
                           return std::pair(a.layer, a.site) < std::pair(b.layer, b.site);
                         }),
          "plan steps are not in order of layer and site");
  for (std::size_t i = 0; i < steps.size(); ++i) {
    check_step(*this, steps[i]);
    const Score& read = scores[static_cast<std::size_t>(steps[i].score)];
    if (read.kind == ScoreKind::kGate) steps[i].gate = read.gates.at(steps[i].layer);
    const bool follows = i > 0 && steps[i].site == Site::kMid && steps[i - 1].site == Site::kMid &&
                         steps[i - 1].layer == steps[i].layer;
    require(!(read.keys && follows), "similarity of keys must be read by the first mid step");
  }
  merges = std::any_of(steps.begin(), steps.end(), [](const Step& s) {
    return s.action == Action::kMerge || s.action == Action::kPool;
  });
  require(!merges || std::none_of(steps.begin(), steps.end(),
                                  [](const Step& s) { return s.action == Action::kPackage; }),
          "merge and pool cannot be combined with package");
  if (output == OutputKind::kTokens ||
      (output == OutputKind::kMean && over == OutputOver::kRestored)) {
    require(std::all_of(steps.begin(), steps.end(),
                        [](const Step& s) { return s.action == Action::kRestore; }),
            "an output over restored tokens needs every action to be restore");
  }

  const auto count = static_cast<std::size_t>(layers);
  attention_scores.assign(count, {});
  scores_are_own.assign(count, 1);
  combines_mid.clear();
  mid_steps.clear();
  post_steps.clear();
  pre_steps.clear();
  for (int32_t l = 0; l < layers; ++l) {
    mid_steps.push_back(
        find_steps(steps, [l](const Step& s) { return s.layer == l && s.site == Site::kMid; }));
    post_steps.push_back(
        find_steps(steps, [l](const Step& s) { return s.layer == l && s.site == Site::kPost; }));
    pre_steps.push_back(
        find_steps(steps, [l](const Step& s) { return s.layer == l && s.site < Site::kMid; }));
    const std::span<const Step> mid = mid_steps.back();
    combines_mid.push_back(
        std::any_of(mid.begin(), mid.end(), [](const Step& s) { return combines(s.action); }));
  }
  for (const Step& step : steps) {
    const Score& score = scores[static_cast<std::size_t>(step.score)];
    if (!score.from_attention()) continue;
    const bool earlier =
        step.site == Site::kPre || (step.site == Site::kMid && score.from_previous);
    const int64_t source = step.layer - (earlier ? 1 : 0);
    const bool cumulative = score.kind == ScoreKind::kAttentionCumulative;
    for (int64_t l = cumulative ? 0 : source; l <= source; ++l) {
      mark(attention_scores, l, step.score);
      if (cumulative || earlier || step.site != Site::kMid) {
        scores_are_own[static_cast<std::size_t>(l)] = 0;
      }
    }
  }
}

void Plan::check_fits(const EncoderConfig& config) const {
  require(layers == config.layers, "the policy is for ", layers, " layers; the model has ",
          config.layers);
  for (const Step& step : steps) {
    for (const Mlp* mlp : {step.gate.get(), step.predictor.get()}) {
      require(!mlp || mlp->inputs() == config.hidden, "a gate or predictor of layer ", step.layer,
              " reads ", mlp ? mlp->inputs() : 0, " values; the hidden size of the model is ",
              config.hidden);
    }
  }
  for (const Score& score : scores) {
    if (score.kind != ScoreKind::kTable) continue;
    const int64_t rows = score.by_position ? config.max_positions : config.vocab_size;
    require(static_cast<int64_t>(score.table.size()) >= rows, "a score table has ",
            score.table.size(), " rows; the model needs ", rows);
  }
}

}  // namespace tokprune
