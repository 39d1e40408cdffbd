#include "model/weights.h"

#include <algorithm>

#include "base/check.h"
#include "base/math.h"
#include "kernels/registry.h"

namespace tokprune {
namespace {

constexpr int64_t kAny = -1;

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + (shape[i] == kAny ? std::string("any") : std::to_string(shape[i]));
  }
  return text + "]";
}

namespace {

class Source {
 public:
  Source(const Context& context, const TensorMap& tensors, Arena& arena)
      : context_(context), tensors_(tensors), arena_(arena) {}

  const TensorView& get(const std::string& name, const std::vector<int64_t>& shape) const {
    const auto it = tensors_.find(name);
    require(it != tensors_.end(), "tensor '", name, "' is missing; expected shape ",
            shape_text(shape));
    bool matches = it->second.shape.size() == shape.size();
    for (std::size_t i = 0; matches && i < shape.size(); ++i) {
      matches = shape[i] == kAny || shape[i] == it->second.shape[i];
    }
    require(matches, "tensor '", name, "' has shape ", shape_text(it->second.shape), "; expected ",
            shape_text(shape));
    return it->second;
  }

  std::span<float> array(const std::string& name, const std::vector<int64_t>& shape) const {
    const TensorView& tensor = get(name, shape);
    int64_t count = 1;
    for (int64_t extent : tensor.shape) count *= extent;
    const std::span<float> copy = arena_.take<float>(count);
    if (arena_.fills()) {
      context_.pool->run([&](int part) {
        const Range range = split_range(count, context_.pool->size(), part);
        std::copy(tensor.data + range.begin, tensor.data + range.end, copy.data() + range.begin);
      });
    }
    return copy;
  }

  NormWeights norm(const std::string& name, int64_t size) const {
    return {array(name + ".weight", {size}), array(name + ".bias", {size})};
  }

  void linear(PackedLinear& layer, int64_t column, const std::string& name, int64_t outputs) const {
    const TensorView& weight = get(name + ".weight", {outputs, layer.inputs});
    const TensorView& bias = get(name + ".bias", {outputs});
    if (arena_.fills()) layer.set(context_, column, outputs, weight.data, bias.data);
  }

  PackedLinear linear(const std::string& name, Precision precision, int64_t inputs,
                      int64_t outputs) const {
    get(name + ".weight", {outputs, inputs});
    PackedLinear layer(arena_, precision, inputs, outputs);
    linear(layer, 0, name, outputs);
    return layer;
  }

  // A layer whose output width the file decides.
  DenseWeights dense(const std::string& name, int64_t inputs, const std::string& activation) const {
    const int64_t outputs = get(name + ".weight", {kAny, inputs}).shape[0];
    require(outputs > 0, "tensor '", name, ".weight' has no rows");
    DenseWeights dense;
    dense.layer = linear(name, Precision::kFp32, inputs, outputs);
    dense.activation = kernels::bias_activation(activation);
    dense.outputs = outputs;
    return dense;
  }

 private:
  const Context& context_;
  const TensorMap& tensors_;
  Arena& arena_;
};

LayerWeights load_layer(const Source& source, const EncoderConfig& config, Precision precision,
                        Arena& arena, int64_t index) {
  const int64_t d = config.hidden;
  const int64_t part = round_up(d, kernels::kPanel);
  const std::string prefix = "layers." + std::to_string(index) + ".";
  source.get(prefix + "q.weight", {d, d});
  LayerWeights layer;
  layer.qkv = PackedLinear(arena, precision, d, 3 * part);
  source.linear(layer.qkv, 0, prefix + "q", d);
  source.linear(layer.qkv, part, prefix + "k", d);
  source.linear(layer.qkv, 2 * part, prefix + "v", d);
  layer.output = source.linear(prefix + "o", precision, d, d);
  layer.attention_norm = source.norm(prefix + "attention_norm", d);
  layer.ffn_in = source.linear(prefix + "ffn_in", precision, d, config.intermediate);
  layer.ffn_out = source.linear(prefix + "ffn_out", precision, config.intermediate, d);
  layer.ffn_norm = source.norm(prefix + "ffn_norm", d);
  return layer;
}

}  // namespace

void validate(const EncoderConfig& config) {
  const auto positive = [](const char* name, int64_t value) {
    require(value > 0, "config '", name, "' is ", value, "; expected a positive number");
  };
  positive("layers", config.layers);
  positive("hidden", config.hidden);
  positive("heads", config.heads);
  positive("intermediate", config.intermediate);
  positive("embedding_size", config.embedding_size);
  positive("vocab_size", config.vocab_size);
  positive("max_positions", config.max_positions);
  require(config.hidden % config.heads == 0, "config 'hidden' is ", config.hidden,
          ", not a multiple of 'heads' = ", config.heads);
  require(config.position_offset >= 0, "config 'position_offset' is ", config.position_offset,
          "; expected at least 0");
  require(config.type_vocab_size >= 0, "config 'type_vocab_size' is ", config.type_vocab_size,
          "; expected at least 0");
  require(config.layer_norm_eps > 0, "config 'layer_norm_eps' is ", config.layer_norm_eps,
          "; expected a positive number");
  require(config.head != HeadKind::kToken || config.head_activation.empty(),
          "config 'head_activation' is '", config.head_activation,
          "'; expected '' with 'head' = 'token', whose logits come from one layer");
}

EncoderWeights::EncoderWeights(const Context& context, const EncoderConfig& config,
                               const TensorMap& tensors, Precision precision,
                               std::optional<std::span<const std::byte>> packed) {
  validate(config);
  // Shapes are checked before any memory is taken: the configuration may ask for any width.
  Arena measured;
  build(context, config, tensors, precision, measured);
  if (packed) {
    memory_ = *packed;
  } else {
    pages_ = AlignedBytes(measured.used());
    memory_ = {pages_.data(), pages_.size()};
  }
  require(memory_.size() == measured.used(), "packed weights have ", memory_.size(),
          " bytes; expected ", measured.used());
  // Read-only when it was given: an arena that is ready is never written.
  auto* writable = const_cast<std::byte*>(memory_.data());
  Arena arena({writable, memory_.size()}, packed ? Arena::Use::kReady : Arena::Use::kFill);
  build(context, config, tensors, precision, arena);
}

void EncoderWeights::build(const Context& context, const EncoderConfig& config,
                           const TensorMap& tensors, Precision precision, Arena& arena) {
  layers.clear();
  dense.clear();
  const Source source(context, tensors, arena);
  const int64_t e = config.embedding_size;
  word = source.array("embeddings.word", {config.vocab_size, e});
  const int64_t position_rows = source.get("embeddings.position", {kAny, e}).shape[0];
  require(position_rows - config.position_offset >= config.max_positions &&
              position_rows > config.position_pad_id,
          "tensor 'embeddings.position' has ", position_rows, " rows; expected ",
          config.max_positions, " from row ", config.position_offset,
          config.position_pad_id < 0
              ? std::string()
              : concat(", and row ", config.position_pad_id, " for the pad token"));
  position = source.array("embeddings.position", {kAny, e});
  if (config.type_vocab_size > 0) {
    token_type = source.array("embeddings.token_type", {config.type_vocab_size, e});
  }
  embedding_norm = source.norm("embeddings.norm", e);
  if (e != config.hidden) {
    embedding_projection = source.linear("embeddings.project", Precision::kFp32, e, config.hidden);
  }
  if (config.relative_attention) {
    relative_bias = source.array("relative_bias", {config.heads, 2 * config.max_positions - 1});
  }
  ffn_activation = kernels::bias_activation(config.activation);
  for (int64_t i = 0; i < config.layers; ++i) {
    layers.push_back(load_layer(source, config, precision, arena, i));
  }

  int64_t width = config.hidden * static_cast<int64_t>(config.pooling.size());
  for (std::size_t j = 0; j < config.dense_activations.size(); ++j) {
    dense.push_back(source.dense("dense." + std::to_string(j), width, config.dense_activations[j]));
    width = dense.back().outputs;
  }
  if (config.head != HeadKind::kNone) {
    width = config.hidden;
    if (!config.head_activation.empty()) {
      head_dense = source.dense("head.dense", width, config.head_activation);
      width = head_dense.outputs;
    }
    head_out = source.dense("head.out", width, "identity");
  }
}

}  // namespace tokprune
