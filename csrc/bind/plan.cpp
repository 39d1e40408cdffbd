// The plan that Python compiles from a policy.
#include <cmath>
#include <memory>
#include <string>

#include "base/check.h"
#include "bind/convert.h"
#include "bind/reader.h"

namespace tokprune::bind {
namespace {

Score to_gate(Reader& in) {
  Score score;
  score.kind = ScoreKind::kGate;
  score.softmax = in.get<bool>("softmax");
  const auto activation = in.get<std::string>("activation");
  for (const auto& [layer, tensors] : in.get<py::dict>("layers")) {
    if (!py::isinstance<py::int_>(layer) || !py::isinstance<py::dict>(tensors)) {
      throw py::type_error("plan gate 'layers' is not a dict of layer (int) to tensors (dict)");
    }
    const auto index = layer.cast<int32_t>();
    score.gates[index] = make_mlp(to_tensors(tensors.cast<py::dict>(), /*only_shapes=*/false),
                                  activation, concat("plan gate of layer ", index));
  }
  in.finish();
  return score;
}

HeadReduction to_heads(Reader& in) {
  return in.choice<HeadReduction>(
      "heads",
      {{"mean", HeadReduction::kMean}, {"sum", HeadReduction::kSum}, {"max", HeadReduction::kMax}});
}

bool to_previous(Reader& in) {
  return in.choice<bool>("from", {{"this", false}, {"previous", true}});
}

Score to_entropy(Reader& in, ScoreKind kind) {
  Score score;
  score.kind = kind;
  score.heads = to_heads(in);
  score.from_previous = to_previous(in);
  score.sign = in.get<float>("sign");
  require(std::fabs(score.sign) == 1.0f, "plan score 'sign' is ", score.sign, "; expected 1 or -1");
  in.finish();
  return score;
}

Score to_similarity(Reader& in) {
  Score score;
  score.kind = ScoreKind::kSimilarity;
  score.keys = in.choice<bool>("of", {{"hidden", false}, {"keys", true}});
  score.attention = in.get<float>("attention");
  require(score.attention >= 0.0f && std::isfinite(score.attention), "plan score 'attention' is ",
          score.attention, "; expected 0 or more");
  in.finish();
  return score;
}

Score to_uniform(const Reader& in) {
  Score score;
  score.kind = ScoreKind::kUniform;
  in.finish();
  return score;
}

Score to_score(const py::dict& dict) {
  Reader in(dict, "plan score");
  const auto kind = in.get<std::string>("kind");
  if (kind == "gate") return to_gate(in);
  if (kind == "similarity") return to_similarity(in);
  if (kind == "uniform") return to_uniform(in);
  if (kind == "row_entropy") return to_entropy(in, ScoreKind::kRowEntropy);
  if (kind == "col_entropy") return to_entropy(in, ScoreKind::kColumnEntropy);
  Score score;
  score.kind = in.choice<ScoreKind>("kind", {{"attn_col", ScoreKind::kAttentionColumn},
                                             {"attn_cls", ScoreKind::kAttentionCls},
                                             {"attn_cum", ScoreKind::kAttentionCumulative},
                                             {"table", ScoreKind::kTable},
                                             {"random", ScoreKind::kRandom},
                                             // These have other fields; named for the message.
                                             {"row_entropy", ScoreKind::kRowEntropy},
                                             {"col_entropy", ScoreKind::kColumnEntropy},
                                             {"gate", ScoreKind::kGate},
                                             {"similarity", ScoreKind::kSimilarity},
                                             {"uniform", ScoreKind::kUniform}});
  score.heads = to_heads(in);
  score.diagonal = in.get<bool>("diagonal");
  score.query = in.choice<Statistic::Query>("query", {{"alive", Statistic::Query::kAlive},
                                                      {"first", Statistic::Query::kFirst},
                                                      {"segment", Statistic::Query::kSegment}});
  score.segment = in.get<int32_t>("segment");
  score.norm = in.choice<ScoreNorm>("norm", {{"none", ScoreNorm::kNone},
                                             {"alive", ScoreNorm::kAlive},
                                             {"const", ScoreNorm::kConstant},
                                             {"n0", ScoreNorm::kInitial},
                                             {"unprotected", ScoreNorm::kUnprotected}});
  score.norm_constant = in.get<float>("n");
  score.from_previous = to_previous(in);
  score.decay = in.get<float>("decay");
  score.value_norm = in.get<bool>("value_norm");
  if (const auto table = in.get<py::object>("table"); !table.is_none()) {
    const auto values = table.cast<FloatArray>();
    score.table.assign(values.data(), values.data() + values.size());
  }
  score.by_position = in.choice<bool>("index", {{"token", false}, {"position", true}});
  score.seed = in.get<uint64_t>("seed");
  in.finish();
  return score;
}

void read_ratio(Reader& in, Selector& select) {
  select.kind = SelectKind::kRatio;
  select.value = in.get<double>("ratio");
  select.of_initial = in.choice<bool>("of", {{"n", false}, {"n0", true}});
  select.rounding = in.choice<Rounding>(
      "round",
      {{"ceil", Rounding::kCeil}, {"floor", Rounding::kFloor}, {"round", Rounding::kNearest}});
}

// A selector of merging or pooling.
void read_combination(Reader& in, const std::string& kind, Step& step) {
  Selector& select = step.select;
  if (kind == "energy_pairs") {
    step.matching = Matching::kEnergyPairs;
    step.margin = in.get<float>("margin");
    step.alpha = in.get<float>("alpha");
    return read_ratio(in, select);
  }
  const bool has_ratio = !in.get<py::object>("ratio").is_none();
  if (kind == "pool") {
    const auto stride = in.get<int64_t>("stride");
    require(has_ratio == (stride == 0), "plan selector 'pool' needs either 'ratio' or 'stride'");
    select.kind = SelectKind::kStride;
    select.k = stride;
  } else {
    step.matching = kind == "bipartite" ? Matching::kBipartite : Matching::kAllPairs;
    const auto theta = in.get<py::object>("theta");
    require(has_ratio == theta.is_none(), "plan selector '", kind,
            "' needs either 'ratio' or 'theta'");
    select.kind = SelectKind::kThreshold;
    if (!has_ratio) select.value = -theta.cast<double>();
  }
  if (has_ratio) return read_ratio(in, select);
  in.skip({"of", "round"});
}

// Sets the step's selector, and its matching or predictor if it has one.
void read_selector(const py::dict& dict, Step& step) {
  Reader in(dict, "plan selector");
  Selector& select = step.select;
  select.min_tokens = in.get<int64_t>("min_tokens");
  select.max_tokens = in.get<int64_t>("max_tokens");
  if (const auto kind = in.get<std::string>("kind");
      kind == "bipartite" || kind == "energy_pairs" || kind == "all_pairs" || kind == "pool") {
    read_combination(in, kind, step);
    return in.finish();
  }
  select.kind = in.choice<SelectKind>("kind", {{"topk", SelectKind::kTopK},
                                               {"ratio", SelectKind::kRatio},
                                               {"threshold", SelectKind::kThreshold},
                                               {"gate", SelectKind::kThreshold},
                                               {"threshold_n", SelectKind::kThresholdN},
                                               {"threshold_rel", SelectKind::kThresholdRelative},
                                               {"predicted_ratio", SelectKind::kPredictedRatio},
                                               {"quantile", SelectKind::kQuantile},
                                               {"top_p", SelectKind::kTopP},
                                               {"rank_bins", SelectKind::kRankBins}});
  switch (select.kind) {
    case SelectKind::kTopK: select.k = in.get<int64_t>("k"); break;
    case SelectKind::kRatio: read_ratio(in, select); break;
    case SelectKind::kStride: break;  // of pool, which has been read
    case SelectKind::kThreshold:
      select.value = in.get<double>(in.get<std::string>("kind") == "gate" ? "threshold" : "theta");
      break;
    case SelectKind::kThresholdN: select.value = in.get<double>("eta"); break;
    case SelectKind::kThresholdRelative:
      select.value = in.get<double>("t");
      select.of_mean = in.choice<bool>("of", {{"max", false}, {"mean", true}});
      break;
    case SelectKind::kPredictedRatio: {
      for (const py::handle ratio : in.get<py::sequence>("ratios")) {
        select.ratios.push_back(ratio.cast<double>());
      }
      py::dict tensors;
      for (const char* key : {"hidden.weight", "hidden.bias", "output.weight", "output.bias"}) {
        tensors[key] = in.get<py::object>(key);
      }
      step.predictor = make_mlp(to_tensors(tensors, /*only_shapes=*/false),
                                in.get<std::string>("activation"), "plan predictor");
      break;
    }
    case SelectKind::kQuantile: select.value = in.get<double>("q"); break;
    case SelectKind::kTopP: select.value = in.get<double>("p"); break;
    case SelectKind::kRankBins:
      for (const py::handle bit : in.get<py::sequence>("bits")) {
        select.bits.push_back(bit.cast<bool>() ? 1 : 0);
      }
      select.float32_bins = in.choice<bool>("bin_rule", {{"int", false}, {"float32", true}});
      break;
  }
  in.finish();
}

Step to_step(const py::dict& dict) {
  Reader in(dict, "plan step");
  Step step;
  step.layer = in.get<int32_t>("layer");
  step.site = in.choice<Site>(
      "site",
      {{"embed", Site::kEmbed}, {"pre", Site::kPre}, {"mid", Site::kMid}, {"post", Site::kPost}});
  step.score = in.get<int32_t>("score");
  step.action = in.choice<Action>("action", {{"drop", Action::kDrop},
                                             {"restore", Action::kRestore},
                                             {"package", Action::kPackage},
                                             {"merge", Action::kMerge},
                                             {"pool", Action::kPool}});
  read_selector(in.get<py::dict>("select"), step);
  in.finish();
  return step;
}

}  // namespace

std::shared_ptr<Plan> to_plan(const py::dict& dict) {
  Reader in(dict, "plan");
  auto plan = std::make_shared<Plan>();
  plan->layers = in.get<int64_t>("layers");
  plan->skip_below = in.get<int64_t>("skip_below");
  plan->passive_first = in.get<bool>("dead_first");
  plan->log_size = in.get<bool>("log_size");
  Reader protect(in.get<py::dict>("protect"), "plan protect");
  plan->protect_first = protect.get<bool>("first");
  plan->protect_last = protect.get<bool>("last");
  plan->protect_segment = protect.get<int32_t>("segment");
  for (const py::handle id : protect.get<py::sequence>("token_ids")) {
    plan->protect_tokens.push_back(id.cast<int32_t>());
  }
  protect.finish();
  Reader output(in.get<py::dict>("output"), "plan output");
  plan->output = output.choice<OutputKind>("kind", {{"none", OutputKind::kNone},
                                                    {"cls", OutputKind::kCls},
                                                    {"mean", OutputKind::kMean},
                                                    {"tokens", OutputKind::kTokens}});
  plan->over = output.choice<OutputOver>("over", {{"kept", OutputOver::kKept},
                                                  {"size", OutputOver::kSize},
                                                  {"restored", OutputOver::kRestored}});
  output.finish();
  for (const py::handle score : in.get<py::sequence>("scores")) {
    plan->scores.push_back(to_score(score.cast<py::dict>()));
  }
  for (const py::handle step : in.get<py::sequence>("steps")) {
    plan->steps.push_back(to_step(step.cast<py::dict>()));
  }
  in.finish();
  plan->finish();
  return plan;
}

}  // namespace tokprune::bind
