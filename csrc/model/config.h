// The shape of an encoder: everything that is not a weight.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tokprune {

enum class Pooling : uint8_t { kCls, kMax, kMean, kMeanSqrtLen, kWeightedMean, kLastToken };
enum class HeadKind : uint8_t {
  kNone,
  kFirst,  // logits of the sequence, from its first token
  kToken,  // logits of every token
};

// The post-norm encoder shared by BERT, RoBERTa, DistilBERT, ELECTRA and MPNet.
struct EncoderConfig {
  int64_t layers = 0;
  int64_t hidden = 0;
  int64_t heads = 0;
  int64_t intermediate = 0;
  int64_t embedding_size = 0;  // differs from hidden in small ELECTRA models
  int64_t vocab_size = 0;
  int64_t max_positions = 0;     // longest sequence, special tokens included
  int64_t position_offset = 0;   // position id of the first token
  int64_t position_pad_id = -1;  // RoBERTa: pad tokens take this position id and are not counted
  int64_t type_vocab_size = 0;   // 0 = no segment embedding
  std::string activation;
  float layer_norm_eps = 1e-12f;
  bool relative_attention = false;  // MPNet
  std::vector<Pooling> pooling;     // concatenated in this order; empty = no pooled output
  std::vector<std::string> dense_activations;  // Dense modules after pooling
  HeadKind head = HeadKind::kNone;
  std::string head_activation;  // of the dense layer before the head's output; "" = none

  int64_t head_dim() const { return hidden / heads; }
};

// Throws std::invalid_argument naming the first field that is out of range.
void validate(const EncoderConfig& config);

}  // namespace tokprune
