// An encoder with its threads: splits a call into micro-batches, lends a workspace to each call and
// collects the results. Several threads may call one engine at once.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "cpu/fork_local.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "model/encoder.h"

namespace tokprune {

struct EngineOutput {
  std::vector<float> hidden;       // [rows, config.hidden]
  std::vector<int32_t> positions;  // [rows]
  std::vector<int32_t> cu_kept;    // [sequences + 1]
  std::vector<float> pooled;       // [sequences, pooled_columns]
  int64_t pooled_columns = 0;
  std::vector<float> logits;  // [sequences or tokens, logit_columns]
  int64_t logit_columns = 0;
  std::vector<int32_t> kept;  // [layers, sequences] tokens alive after each layer
  int64_t macs = 0;
  Trace trace;
};

class Engine {
 public:
  // threads < 1 means the default count; isa "" means TOKPRUNE_ISA or the best level.
  Engine(EncoderConfig config, const TensorMap& tensors, int threads, std::string_view isa);
  ~Engine();

  // Throws std::invalid_argument for a batch or options that do not fit the model.
  EngineOutput forward(const RaggedBatch& batch, const ForwardOptions& options, bool trace);

  const Encoder& encoder() const { return encoder_; }
  IsaLevel isa() const { return isa_; }
  int threads() const { return pool_.size(); }

 private:
  struct IdleWorkspaces;

  void collect(const Workspace& ws, const RaggedBatch& part, int64_t first, int64_t sequences,
               const ForwardResult& result, EngineOutput& output) const;

  IsaLevel isa_;
  ThreadPool pool_;
  Context context_;
  Encoder encoder_;
  ForkLocal<IdleWorkspaces> idle_;
};

}  // namespace tokprune
