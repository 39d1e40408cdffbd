// An encoder with its threads: splits a call into micro-batches, lends a workspace to each and
// collects the results. Several threads may call one engine at once.
//
// A small call runs with all threads on one micro-batch (latency). In a large call each thread
// takes micro-batches of its own and never waits for another (throughput). Results are the same
// bits.
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
  // [layers, sequences] tokens alive after each layer. A last layer that computes first tokens only
  // skips its own steps, and all that it reads count.
  std::vector<int32_t> kept;
  int64_t macs = 0;
  Trace trace;
};

// What runs for a request on a level. "auto" never gives up quality: bf16x3 where there are matrix
// tiles, else fp32. bf16x3 without tiles is fp32, which is as exact and faster there.
// Throws std::invalid_argument for an unknown name.
Precision resolve_precision(std::string_view request, IsaLevel level);

class Engine {
 public:
  // threads < 1 means the default count; isa "" means TOKPRUNE_ISA or the best level; precision is
  // "fp32", "bf16", "int8", "bf16x3" or "auto". `packed`: EncoderWeights.
  Engine(EncoderConfig config, const TensorMap& tensors, int threads, std::string_view isa,
         std::string_view precision, std::optional<std::span<const std::byte>> packed);
  ~Engine();

  // Throws std::invalid_argument for a batch or options that do not fit the model.
  EngineOutput forward(const RaggedBatch& batch, const ForwardOptions& options, bool trace);

  const Encoder& encoder() const { return encoder_; }
  IsaLevel isa() const { return isa_; }
  int threads() const { return pool_.size(); }

 private:
  struct IdleWorkspaces;

  EngineOutput run_part(const Context& context, const RaggedBatch& part,
                        const ForwardOptions& options, bool trace);

  IsaLevel isa_;
  ThreadPool pool_;
  ThreadPool serial_;  // of one thread: a worker that runs a micro-batch of its own
  Context context_;
  Encoder encoder_;
  ForkLocal<IdleWorkspaces> idle_;
};

}  // namespace tokprune
