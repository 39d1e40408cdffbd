// The encoder's forward pass over one ragged batch.
#pragma once

#include <cstdint>

#include "model/batch.h"
#include "model/config.h"
#include "model/policy.h"
#include "model/pruner.h"
#include "model/weights.h"
#include "model/workspace.h"
#include "ops/context.h"

namespace tokprune {

enum class Want : uint8_t {
  kHidden,  // the final rows, and whatever pooled output and logits the model has
  kPooled,
  kLogits,
};

struct ForwardOptions {
  const Plan* plan = nullptr;  // null = dense
  Want want = Want::kHidden;
  bool normalize = false;  // scale pooled vectors to unit length
  Trace* trace = nullptr;  // allocates
};

// Where the results lie in the workspace until its next use.
struct ForwardResult {
  // Final rows of ld_hidden floats, sequence by sequence; only for Want::kHidden.
  const float* hidden = nullptr;
  const int32_t* hidden_begin = nullptr;  // [sequences + 1]
  const int32_t* positions = nullptr;     // [rows] original positions
  const float* pooled = nullptr;          // [sequences, ld_pooled]
  int64_t pooled_columns = 0;
  const float* logits = nullptr;  // [sequences or tokens, ld_logits]
  int64_t logit_rows = 0;
  int64_t macs = 0;  // multiply-adds executed in the encoder layers and the policy's gates
};

class Encoder {
 public:
  // Arguments: EncoderWeights.
  Encoder(EncoderConfig config, const Context& context, const TensorMap& tensors,
          Precision precision, std::optional<std::span<const std::byte>> packed);

  const EncoderConfig& config() const { return config_; }
  const EncoderWeights& weights() const { return weights_; }
  Precision precision() const { return precision_; }

  // Throws std::invalid_argument if the model cannot deliver what `options` want.
  void check(const ForwardOptions& options) const;
  WorkspacePlan workspace_plan(const RaggedBatch& batch, const ForwardOptions& options,
                               int64_t threads) const;
  void reserve(Workspace& ws, const WorkspacePlan& plan) const;

  // Runs a validated batch in a workspace that was reserved for it. Allocates nothing unless a
  // trace is wanted.
  ForwardResult forward(const Context& context, Workspace& ws, const RaggedBatch& batch,
                        const ForwardOptions& options) const;

 private:
  struct Pass;       // the state of one forward pass
  struct FinalRows;  // what is left after the last layer

  // encoder.cpp
  void number_positions(Pass& pass) const;
  void embed_rows(Pass& pass, int64_t count, float* dst) const;
  template <class Emit>
  void boundary(Pass& pass, int64_t index, const Emit& emit) const;
  void read_states(Pass& pass, const Step& step) const;
  StateRows hidden_states(const Workspace& ws, const float* states) const;
  void apply(Pass& pass, const RowMap& map, int64_t before, float*& states, float*& other) const;
  void run_mlp(Pass& pass, const Mlp& mlp, const float* src, int64_t rows) const;
  // encoder_layer.cpp
  void layer(Pass& pass, int64_t index) const;
  void layer_first_rows(Pass& pass, int64_t index) const;
  void attention_pruned(Pass& pass, int64_t index, const AttentionArgs& args) const;
  void project_attention(Pass& pass, const LayerWeights& weights, const int32_t* residual_rows,
                         int64_t rows) const;
  void combine_rows(Pass& pass, int64_t index) const;
  void feed_forward(Pass& pass, const LayerWeights& weights, int64_t rows) const;
  void norm(Pass& pass, const NormWeights& weights, const float* src, const int32_t* rows,
            float* dst, int64_t count) const;
  void restore_rows(Pass& pass, const float* states, int64_t first, int64_t last) const;
  // encoder_output.cpp
  void finish(Pass& pass, ForwardResult& result) const;
  FinalRows final_rows(Pass& pass) const;
  void pool(Pass& pass, const FinalRows& rows, ForwardResult& result) const;
  void classify(Pass& pass, const FinalRows& rows, ForwardResult& result) const;

  EncoderConfig config_;
  Precision precision_;
  EncoderWeights weights_;
};

struct Encoder::Pass {
  const Context& context;
  Workspace& ws;
  const RaggedBatch& batch;
  const ForwardOptions& options;
  bool first_rows_only = false;  // the last layer computes only first tokens
  bool listed = false;           // ws.survivors holds the rows left at a boundary
  int64_t macs = 0;
};

}  // namespace tokprune
