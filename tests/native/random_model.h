// A small encoder with random weights, ragged batches for it, and policies that prune it.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "kernels/abi.h"
#include "model/batch.h"
#include "model/config.h"
#include "model/policy.h"
#include "model/weights.h"
#include "ops/packed_linear.h"

namespace tokprune::testing {

// splitmix64: the same numbers on every platform.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t x = (state_ += 0x9E3779B97F4A7C15u);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  int64_t below(int64_t limit) {
    return static_cast<int64_t>(next() % static_cast<uint64_t>(limit));
  }
  // Uniform in [-1, 1).
  float value() { return static_cast<float>(next() >> 40) * 0x1p-23f - 1.0f; }

 private:
  uint64_t state_;
};

struct RandomModel {
  EncoderConfig config;
  std::deque<std::vector<float>> storage;
  TensorMap tensors;
};

inline std::unique_ptr<RandomModel> random_model() {
  auto model = std::make_unique<RandomModel>();
  EncoderConfig& c = model->config;
  c.layers = 3;
  c.hidden = 40;  // heads of 10 columns: narrower than a panel
  c.heads = 4;
  c.intermediate = 320;  // sums continue across blocks of the inner dimension
  c.embedding_size = 24;
  c.vocab_size = 50;
  c.max_positions = 80;
  c.type_vocab_size = 2;
  c.activation = "gelu";
  c.pooling = {Pooling::kCls};
  c.dense_activations = {"tanh"};
  c.head = HeadKind::kFirst;
  c.head_activation = "relu";

  Random random(1);
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, float mean,
                       float spread) {
    int64_t count = 1;
    for (int64_t extent : shape) count *= extent;
    std::vector<float>& values = model->storage.emplace_back(static_cast<std::size_t>(count));
    for (float& value : values) value = mean + spread * random.value();
    model->tensors[name] = {values.data(), std::move(shape)};
  };
  const auto linear = [&](const std::string& name, int64_t outputs, int64_t inputs) {
    add(name + ".weight", {outputs, inputs}, 0.0f, 0.3f);
    add(name + ".bias", {outputs}, 0.0f, 0.1f);
  };
  const auto norm = [&](const std::string& name, int64_t size) {
    add(name + ".weight", {size}, 1.0f, 0.1f);
    add(name + ".bias", {size}, 0.0f, 0.1f);
  };
  add("embeddings.word", {c.vocab_size, c.embedding_size}, 0.0f, 1.0f);
  add("embeddings.position", {c.max_positions, c.embedding_size}, 0.0f, 1.0f);
  add("embeddings.token_type", {c.type_vocab_size, c.embedding_size}, 0.0f, 1.0f);
  norm("embeddings.norm", c.embedding_size);
  linear("embeddings.project", c.hidden, c.embedding_size);
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string layer = "layers." + std::to_string(i) + ".";
    for (const char* part : {"q", "k", "v", "o"}) linear(layer + part, c.hidden, c.hidden);
    norm(layer + "attention_norm", c.hidden);
    linear(layer + "ffn_in", c.intermediate, c.hidden);
    linear(layer + "ffn_out", c.hidden, c.intermediate);
    norm(layer + "ffn_norm", c.hidden);
  }
  linear("dense.0", 20, c.hidden);
  linear("head.dense", c.hidden, c.hidden);
  linear("head.out", 3, c.hidden);
  return model;
}

struct RandomBatch {
  std::vector<int32_t> cu_seqlens{0};
  std::vector<int32_t> ids;
  std::vector<int32_t> types;

  RandomBatch(const EncoderConfig& config, const std::vector<int32_t>& lengths, uint64_t seed) {
    Random random(seed);
    for (int32_t length : lengths) {
      for (int32_t i = 0; i < length; ++i) {
        ids.push_back(static_cast<int32_t>(random.below(config.vocab_size)));
        types.push_back(i < length / 2 ? 0 : 1);
      }
      cu_seqlens.push_back(cu_seqlens.back() + length);
    }
  }

  RaggedBatch view() const {
    RaggedBatch batch;
    batch.sequences = static_cast<int64_t>(cu_seqlens.size()) - 1;
    batch.cu_seqlens = cu_seqlens.data();
    batch.input_ids = ids.data();
    batch.token_type_ids = types.data();
    return batch;
  }
};

struct NamedPrecision {
  const char* name;  // for Engine
  Precision precision;
};

// The precisions in which `kernels` can multiply.
inline std::vector<NamedPrecision> precisions_of(const kernels::KernelTable& kernels) {
  std::vector<NamedPrecision> list = {
      {"fp32", Precision::kFp32}, {"bf16", Precision::kBf16}, {"int8", Precision::kInt8}};
  if (kernels.tiles) list.push_back({"bf16x3", Precision::kBf16x3});
  return list;
}

struct NamedPlan {
  std::string name;
  std::unique_ptr<Plan> plan;  // null = dense
};

// A gate in every layer, of any width.
inline Score gate(const EncoderConfig& config, int64_t width, int64_t outputs) {
  Random random(3);
  std::vector<float> values(static_cast<std::size_t>(width * std::max(config.hidden, outputs)));
  for (float& value : values) value = 0.2f * random.value();
  const TensorMap tensors = {{"hidden.weight", {values.data(), {width, config.hidden}}},
                             {"hidden.bias", {values.data(), {width}}},
                             {"output.weight", {values.data(), {outputs, width}}},
                             {"output.bias", {values.data(), {outputs}}}};
  Score score;
  score.kind = ScoreKind::kGate;
  for (int32_t layer = 0; layer < config.layers; ++layer) {
    score.gates[layer] = make_mlp(tensors, "tanh", "gate");
  }
  return score;
}

// One plan for each place and action, with different scores and selectors.
inline std::vector<NamedPlan> pruning_plans(const EncoderConfig& config) {
  std::vector<NamedPlan> plans;
  const auto add = [&](const char* name, Score score, Site site, Action action, Selector select,
                       int32_t first_layer) {
    auto plan = std::make_unique<Plan>();
    plan->layers = config.layers;
    plan->protect_first = true;
    plan->scores.push_back(std::move(score));
    const int32_t last = site == Site::kEmbed ? 1 : static_cast<int32_t>(config.layers);
    select.min_tokens = 1;
    for (int32_t layer = first_layer; layer < last; ++layer) {
      plan->steps.push_back({layer, site, 0, select, action});
      if (!select.ratios.empty()) {
        const auto count = static_cast<int64_t>(select.ratios.size());
        plan->steps.back().predictor = gate(config, 500, count).gates.at(layer);
      }
    }
    plan->finish();
    plans.push_back({name, std::move(plan)});
  };
  plans.push_back({"dense", nullptr});
  Score column;
  column.norm = ScoreNorm::kUnprotected;
  Score previous = column;
  previous.from_previous = true;
  previous.diagonal = false;
  Score cumulative;
  cumulative.kind = ScoreKind::kAttentionCumulative;
  Score cls;
  cls.kind = ScoreKind::kAttentionCls;
  cls.value_norm = true;
  Score random;
  random.kind = ScoreKind::kRandom;

  Selector threshold;
  threshold.kind = SelectKind::kThreshold;
  threshold.value = 0.8;
  Selector relative;
  relative.kind = SelectKind::kThresholdRelative;
  relative.value = 0.8;
  relative.of_mean = true;
  Selector topk;
  topk.k = 11;
  Selector ratio;
  ratio.kind = SelectKind::kRatio;
  ratio.value = 0.7;
  Selector quantile;
  quantile.kind = SelectKind::kQuantile;
  quantile.value = 0.3;
  Selector top_p;
  top_p.kind = SelectKind::kTopP;
  top_p.value = 0.9;
  Selector bins;
  bins.kind = SelectKind::kRankBins;
  bins.bits = {1, 0, 1, 0, 1};

  add("threshold drop mid", column, Site::kMid, Action::kDrop, threshold, 0);
  add("threshold restore mid", column, Site::kMid, Action::kRestore, threshold, 0);
  add("relative restore post", column, Site::kPost, Action::kRestore, relative, 0);
  add("topk package mid", column, Site::kMid, Action::kPackage, topk, 0);
  add("top_p package post", column, Site::kPost, Action::kPackage, top_p, 0);
  add("quantile drop pre", previous, Site::kPre, Action::kDrop, quantile, 1);
  add("ratio drop mid", cumulative, Site::kMid, Action::kDrop, ratio, 0);
  add("bins drop mid", cls, Site::kMid, Action::kDrop, bins, 0);
  add("random drop embed", random, Site::kEmbed, Action::kDrop, ratio, 0);
  Score entropy;
  entropy.kind = ScoreKind::kColumnEntropy;
  add("entropy drop mid", entropy, Site::kMid, Action::kDrop, quantile, 0);
  entropy.kind = ScoreKind::kRowEntropy;
  add("entropy restore post", entropy, Site::kPost, Action::kRestore, relative, 0);
  add("gate restore pre", gate(config, 1000, 2), Site::kPre, Action::kRestore, threshold, 0);
  Selector predicted;
  predicted.kind = SelectKind::kPredictedRatio;
  predicted.ratios = {0.9, 0.5, 0.7};
  add("predicted drop embed", random, Site::kEmbed, Action::kDrop, predicted, 0);
  add("gate package post", gate(config, 9, 1), Site::kPost, Action::kPackage, ratio, 0);
  return plans;
}

}  // namespace tokprune::testing
