#include "bind/convert.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <set>
#include <string>
#include <utility>

#include "base/check.h"

namespace tokprune::bind {
namespace {

// Reads a dict key by key and refuses what nobody asked for.
class Reader {
 public:
  Reader(py::dict dict, std::string where) : dict_(std::move(dict)), where_(std::move(where)) {}

  template <class T>
  T get(const char* key) {
    require(dict_.contains(key), where_, " lacks '", key, "'");
    seen_.insert(key);
    try {
      return dict_[key].cast<T>();
    } catch (const py::cast_error&) {
      const std::string type = py::str(py::type::of(dict_[key]).attr("__name__"));
      throw py::type_error(concat(where_, " '", key, "' has the wrong type: ", type));
    }
  }

  template <class E>
  E choice(const char* key, std::initializer_list<std::pair<const char*, E>> options) {
    const auto text = get<std::string>(key);
    std::string known;
    for (const auto& [name, value] : options) {
      if (text == name) return value;
      known += (known.empty() ? "" : ", ") + std::string(name);
    }
    require(false, where_, " '", key, "' is '", text, "'; expected one of ", known);
    return {};
  }

  void finish() const {
    for (const auto& item : dict_) {
      const std::string key = py::str(item.first);
      require(seen_.contains(key), where_, " has an unknown key '", key, "'");
    }
  }

 private:
  py::dict dict_;
  std::string where_;
  std::set<std::string, std::less<>> seen_;
};

Pooling to_pooling(const std::string& name) {
  static const std::initializer_list<std::pair<const char*, Pooling>> kModes = {
      {"cls", Pooling::kCls},
      {"max", Pooling::kMax},
      {"mean", Pooling::kMean},
      {"mean_sqrt_len", Pooling::kMeanSqrtLen},
      {"weightedmean", Pooling::kWeightedMean},
      {"lasttoken", Pooling::kLastToken}};
  for (const auto& [text, mode] : kModes) {
    if (name == text) return mode;
  }
  require(false, "pooling '", name, "' is unknown");
  return {};
}

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

Score to_score(const py::dict& dict) {
  Reader in(dict, "plan score");
  const auto kind = in.get<std::string>("kind");
  if (kind == "gate") return to_gate(in);
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
                                             {"gate", ScoreKind::kGate}});
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

// Sets the step's selector, and its predictor if it has one.
void read_selector(const py::dict& dict, Step& step) {
  Reader in(dict, "plan selector");
  Selector& select = step.select;
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
  select.min_tokens = in.get<int64_t>("min_tokens");
  select.max_tokens = in.get<int64_t>("max_tokens");
  switch (select.kind) {
    case SelectKind::kTopK: select.k = in.get<int64_t>("k"); break;
    case SelectKind::kRatio:
      select.value = in.get<double>("ratio");
      select.of_initial = in.choice<bool>("of", {{"n", false}, {"n0", true}});
      select.rounding = in.choice<Rounding>(
          "round",
          {{"ceil", Rounding::kCeil}, {"floor", Rounding::kFloor}, {"round", Rounding::kNearest}});
      break;
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
  step.action = in.choice<Action>(
      "action",
      {{"drop", Action::kDrop}, {"restore", Action::kRestore}, {"package", Action::kPackage}});
  read_selector(in.get<py::dict>("select"), step);
  in.finish();
  return step;
}

}  // namespace

EncoderConfig to_config(const py::dict& dict) {
  Reader in(dict, "config");
  EncoderConfig config;
  config.layers = in.get<int64_t>("layers");
  config.hidden = in.get<int64_t>("hidden");
  config.heads = in.get<int64_t>("heads");
  config.intermediate = in.get<int64_t>("intermediate");
  config.embedding_size = in.get<int64_t>("embedding_size");
  config.vocab_size = in.get<int64_t>("vocab_size");
  config.max_positions = in.get<int64_t>("max_positions");
  config.position_offset = in.get<int64_t>("position_offset");
  config.position_pad_id = in.get<int64_t>("position_pad_id");
  config.type_vocab_size = in.get<int64_t>("type_vocab_size");
  config.activation = in.get<std::string>("activation");
  config.layer_norm_eps = in.get<float>("layer_norm_eps");
  config.relative_attention = in.get<bool>("relative_attention");
  for (const py::handle mode : in.get<py::list>("pooling")) {
    config.pooling.push_back(to_pooling(py::str(mode)));
  }
  for (const py::handle name : in.get<py::list>("dense_activations")) {
    config.dense_activations.push_back(py::str(name));
  }
  config.head = in.choice<HeadKind>(
      "head",
      {{"none", HeadKind::kNone}, {"first", HeadKind::kFirst}, {"token", HeadKind::kToken}});
  config.head_activation = in.get<std::string>("head_activation");
  in.finish();
  return config;
}

std::shared_ptr<Plan> to_plan(const py::dict& dict) {
  Reader in(dict, "plan");
  auto plan = std::make_shared<Plan>();
  plan->layers = in.get<int64_t>("layers");
  plan->skip_below = in.get<int64_t>("skip_below");
  plan->passive_first = in.get<bool>("dead_first");
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

TensorMap to_tensors(const py::dict& dict, bool only_shapes) {
  TensorMap tensors;
  for (const auto& [key, value] : dict) {
    const std::string name = py::str(key);
    if (only_shapes) {
      if (!py::isinstance<py::tuple>(value) && !py::isinstance<py::list>(value)) {
        throw py::type_error(concat("the shape of tensor '", name, "' is not a tuple or list"));
      }
      TensorView view;
      for (const py::handle extent : py::reinterpret_borrow<py::sequence>(value)) {
        if (!py::isinstance<py::int_>(extent)) {
          throw py::type_error(
              concat("the shape of tensor '", name, "' holds a value that is no int"));
        }
        view.shape.push_back(extent.cast<int64_t>());
      }
      tensors.emplace(name, std::move(view));
      continue;
    }
    if (!py::isinstance<FloatArray>(value)) {
      throw py::type_error(concat("tensor '", name, "' is not a C-contiguous float32 array"));
    }
    const auto array = py::reinterpret_borrow<FloatArray>(value);
    TensorView view{.data = array.data(), .shape = {}};
    for (py::ssize_t i = 0; i < array.ndim(); ++i) view.shape.push_back(array.shape(i));
    tensors.emplace(name, std::move(view));
  }
  return tensors;
}

}  // namespace tokprune::bind
