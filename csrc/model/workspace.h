// Everything one forward pass writes, planned before it starts. One workspace per concurrent call.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned.h"
#include "model/config.h"
#include "model/policy.h"
#include "model/pruner.h"
#include "ops/attention.h"
#include "ops/linear.h"

namespace tokprune {

// Activations are row-major with a row stride that is an odd number of cache lines: rows a power of
// two apart would compete for the same sets of the cache.
int64_t row_stride(int64_t columns);

struct WorkspacePlan {
  int64_t tokens = 0;
  int64_t sequences = 0;
  int64_t longest = 0;  // longest sequence
  int64_t scores = 0;   // of the policy
  // Columns of the widest hidden layer and output of the policy's perceptrons.
  int64_t mlp_hidden = 0, mlp_outputs = 0;
  int64_t threads = 1;
  bool mid_steps = false;
  bool restores = false;
  bool merges = false;
};

struct Workspace {
  WorkspacePlan plan;
  int64_t ld_hidden = 0, ld_qkv = 0, ld_ffn = 0, ld_embedding = 0, ld_pooled = 0;

  // Two buffers of layer inputs and outputs that swap roles, [tokens, ld_hidden].
  AlignedArray<float> x_memory, y_memory;
  float* x = nullptr;
  float* y = nullptr;
  AlignedArray<float> qkv;      // [tokens, ld_qkv]
  AlignedArray<float> context;  // [tokens, ld_hidden]; between layers, a perceptron's output
  // A block of rows of a layer's feed-forward, [rows, ld_ffn]; between layers, the hidden layer of
  // a perceptron, [tokens].
  AlignedArray<float> ffn;
  AlignedArray<float> embedding;  // [tokens, ld_embedding], if it is projected
  // If the policy restores: the last state of every token that has one, and which tokens do.
  AlignedArray<float> restored;        // [tokens, ld_hidden]
  AlignedArray<uint8_t> is_restored;   // [tokens]
  AlignedArray<int32_t> output_begin;  // [sequences + 1]
  AlignedArray<float> probabilities;
  AlignedArray<float> inv_sum;           // [heads][tokens]
  AlignedArray<int64_t> probability_at;  // [sequences]
  AlignedArray<KeptRows> kept_rows;      // [sequences]
  // [tokens] each. position_index counts a token's predecessors; survivors lists rows between
  // layers.
  AlignedArray<int32_t> ids, types, positions, rows, position_index, survivors;
  AlignedArray<float> pooled, pooled_next;  // [sequences, ld_pooled]
  AlignedArray<float> pool_weight;          // [tokens]
  AlignedArray<int32_t> pool_begin;         // [sequences + 1]
  AlignedArray<float> logits;               // [tokens or sequences, ld_logits]
  int64_t ld_logits = 0;
  AlignedArray<int32_t> kept_counts;      // [layers][sequences]
  std::vector<AttentionScratch> scratch;  // [threads]
  std::vector<OperandScratch> operands;   // [threads]
  Pruner pruner;

  // Grows to hold `wanted`; a no-op when it already does.
  void reserve(const EncoderConfig& config, Precision precision, int64_t widest_pooled,
               int64_t logit_columns, const WorkspacePlan& wanted);
};

// Largest total of stored probabilities (floats). Sequences beyond it take the fused form of
// attention, which stores none, so memory stays bounded whatever their length.
constexpr int64_t kProbabilityBudget = int64_t{1} << 22;

// Rows of a thread that pass through the whole feed-forward before the next ones begin, so that
// what lies between its two products is read back from the second-level cache; whole tiles of every
// level. The last block takes up to half as many more.
constexpr int64_t kFeedForwardRows = 96;
constexpr int64_t most_feed_forward_rows(int64_t block) { return block + block / 2; }

}  // namespace tokprune
