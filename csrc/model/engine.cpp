#include "model/engine.h"

#include <algorithm>
#include <limits>
#include <mutex>

#include "base/check.h"
#include "cpu/topology.h"
#include "kernels/registry.h"

namespace tokprune {
namespace {

// Tokens of one micro-batch: enough to fill every thread, few enough to bound the activations
// (about 100 MB for BERT-base) and to leave them in the last-level cache.
constexpr int64_t kTokenBudget = 4096;

// A trace with room for every token of `batch`, NaN where no score is taken.
Trace empty_trace(const RaggedBatch& batch, const ForwardOptions& options, int64_t layers) {
  Trace trace;
  const auto sequences = static_cast<std::size_t>(batch.sequences);
  trace.kept.assign(static_cast<std::size_t>(layers), {});
  trace.scores.assign(static_cast<std::size_t>(layers), {});
  for (auto& layer : trace.kept) layer.resize(sequences);
  if (!options.plan) return trace;
  for (const Step& step : options.plan->steps) {
    auto& layer = trace.scores[static_cast<std::size_t>(step.layer)];
    layer.resize(sequences);
    for (std::size_t s = 0; s < sequences; ++s) {
      layer[s].assign(static_cast<std::size_t>(batch.length(static_cast<int64_t>(s))),
                      std::numeric_limits<float>::quiet_NaN());
    }
  }
  return trace;
}

void append(Trace& all, Trace&& part) {
  if (all.kept.empty()) {
    all = std::move(part);
    return;
  }
  for (std::size_t l = 0; l < all.kept.size(); ++l) {
    std::move(part.kept[l].begin(), part.kept[l].end(), std::back_inserter(all.kept[l]));
    std::move(part.scores[l].begin(), part.scores[l].end(), std::back_inserter(all.scores[l]));
  }
}

void append_rows(std::vector<float>& all, const float* rows, int64_t count, int64_t ld,
                 int64_t columns) {
  for (int64_t i = 0; i < count; ++i) {
    all.insert(all.end(), rows + i * ld, rows + i * ld + columns);
  }
}

}  // namespace

struct Engine::IdleWorkspaces {
  std::mutex mutex;
  std::vector<std::unique_ptr<Workspace>> list;

  std::unique_ptr<Workspace> take() {
    const std::lock_guard lock(mutex);
    if (list.empty()) return std::make_unique<Workspace>();
    std::unique_ptr<Workspace> workspace = std::move(list.back());
    list.pop_back();
    return workspace;
  }

  void give(std::unique_ptr<Workspace> workspace) {
    const std::lock_guard lock(mutex);
    list.push_back(std::move(workspace));
  }
};

Engine::Engine(EncoderConfig config, const TensorMap& tensors, int threads, std::string_view isa)
    : isa_(resolve_isa(isa)),
      pool_(threads < 1 ? default_thread_count() : threads),
      context_{&kernels::table_for(isa_), &pool_},
      encoder_(std::move(config), context_, tensors),
      idle_([] { return std::make_unique<IdleWorkspaces>(); }) {}

Engine::~Engine() = default;

EngineOutput Engine::forward(const RaggedBatch& batch, const ForwardOptions& options, bool trace) {
  encoder_.check(options);
  validate(batch, encoder_.config());
  EngineOutput output;
  const int64_t layers = encoder_.config().layers;
  output.kept.resize(static_cast<std::size_t>(layers * batch.sequences));
  output.cu_kept.push_back(0);

  IdleWorkspaces& idle = idle_.get();
  std::unique_ptr<Workspace> workspace = idle.take();
  for (int64_t first = 0, last = 0; first < batch.sequences; first = last) {
    int64_t tokens = 0;
    for (last = first; last < batch.sequences; ++last) {
      if (last > first && tokens + batch.length(last) > kTokenBudget) break;
      tokens += batch.length(last);
    }
    const RaggedBatch part = batch.slice(first, last);
    ForwardOptions part_options = options;
    Trace part_trace;
    if (trace) {
      part_trace = empty_trace(part, options, layers);
      part_options.trace = &part_trace;
    }
    encoder_.reserve(*workspace, encoder_.workspace_plan(part, part_options), pool_.size());
    const ForwardResult result = encoder_.forward(context_, *workspace, part, part_options);
    collect(*workspace, part, first, batch.sequences, result, output);
    if (trace) append(output.trace, std::move(part_trace));
  }
  idle.give(std::move(workspace));
  return output;
}

void Engine::collect(const Workspace& ws, const RaggedBatch& part, int64_t first, int64_t sequences,
                     const ForwardResult& result, EngineOutput& output) const {
  const EncoderConfig& config = encoder_.config();
  if (result.hidden) {
    const int64_t rows = result.hidden_begin[part.sequences];
    append_rows(output.hidden, result.hidden, rows, ws.ld_hidden, config.hidden);
    output.positions.insert(output.positions.end(), result.positions, result.positions + rows);
    const int32_t base = output.cu_kept.back();
    for (int64_t s = 0; s < part.sequences; ++s) {
      output.cu_kept.push_back(base + result.hidden_begin[s + 1]);
    }
  }
  if (result.pooled) {
    output.pooled_columns = result.pooled_columns;
    append_rows(output.pooled, result.pooled, part.sequences, ws.ld_pooled, result.pooled_columns);
  }
  if (result.logits) {
    output.logit_columns = encoder_.weights().head_out.outputs;
    append_rows(output.logits, result.logits, result.logit_rows, ws.ld_logits,
                output.logit_columns);
  }
  for (int64_t l = 0; l < config.layers; ++l) {
    std::copy_n(ws.kept_counts.data() + l * part.sequences, part.sequences,
                output.kept.data() + l * sequences + first);
  }
  output.macs += result.macs;
}

}  // namespace tokprune
