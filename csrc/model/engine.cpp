#include "model/engine.h"

#include <algorithm>
#include <exception>
#include <iterator>
#include <limits>
#include <mutex>

#include "base/check.h"
#include "base/math.h"
#include "cpu/topology.h"
#include "kernels/registry.h"

namespace tokprune {
namespace {

// Tokens of one micro-batch: enough to fill every thread, few enough to bound the activations
// (about 100 MB for BERT-base) and to leave them in the last-level cache.
constexpr int64_t kTokenBudget = 4096;

// Tokens of a micro-batch that one thread runs alone: at least so many that reading all weights for
// it is cheap, at most so many that the last ones to finish are not waited for long.
constexpr int64_t kLeastTokensAlone = 256;
constexpr int64_t kMostTokensAlone = 1024;

// A trace with room for every token of `batch`, NaN where no score is taken.
Trace empty_trace(const RaggedBatch& batch, const ForwardOptions& options, int64_t layers) {
  Trace trace;
  const auto sequences = static_cast<std::size_t>(batch.sequences);
  trace.kept.assign(static_cast<std::size_t>(layers), {});
  trace.scores.assign(static_cast<std::size_t>(layers), {});
  trace.rows.assign(static_cast<std::size_t>(layers), {});
  for (auto* layers_of : {&trace.kept, &trace.rows}) {
    for (auto& layer : *layers_of) layer.resize(sequences);
  }
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

// Consecutive sequences of up to `budget` tokens, or one longer sequence.
std::vector<Range> cut(const RaggedBatch& batch, int64_t budget) {
  std::vector<Range> parts;
  for (int64_t first = 0, last = 0; first < batch.sequences; first = last) {
    int64_t tokens = 0;
    for (last = first; last < batch.sequences; ++last) {
      if (last > first && tokens + batch.length(last) > budget) break;
      tokens += batch.length(last);
    }
    parts.push_back({first, last});
  }
  return parts;
}

// Micro-batches for threads that work alone, or none if the call is too small to keep all busy.
std::vector<Range> cut_for_threads(const RaggedBatch& batch, int64_t threads) {
  if (threads == 1 || batch.tokens() < threads * kLeastTokensAlone) return {};
  const int64_t share = ceil_div(batch.tokens(), 2 * threads);
  std::vector<Range> parts = cut(batch, std::clamp(share, kLeastTokensAlone, kMostTokensAlone));
  // Fewer long sequences than twice the threads would leave threads idle at the end.
  if (std::ssize(parts) < 2 * threads) return {};
  return parts;
}

template <class T>
void append(std::vector<T>& all, std::vector<T>&& part) {
  if (all.empty()) {
    all = std::move(part);
  } else {
    all.insert(all.end(), std::make_move_iterator(part.begin()),
               std::make_move_iterator(part.end()));
  }
}

template <class T>
void append_layers(std::vector<std::vector<T>>& all, std::vector<std::vector<T>>&& part) {
  all.resize(part.size());
  for (std::size_t l = 0; l < part.size(); ++l) append(all[l], std::move(part[l]));
}

// The output of `part`, which covers sequences [first, ...), at the end of `all`.
void append(EngineOutput& all, EngineOutput&& part, int64_t first, int64_t layers) {
  append(all.hidden, std::move(part.hidden));
  append(all.positions, std::move(part.positions));
  const int32_t base = all.cu_kept.back();
  for (std::size_t s = 1; s < part.cu_kept.size(); ++s) {
    all.cu_kept.push_back(base + part.cu_kept[s]);
  }
  append(all.pooled, std::move(part.pooled));
  all.pooled_columns = part.pooled_columns;
  append(all.logits, std::move(part.logits));
  all.logit_columns = part.logit_columns;
  const auto total = static_cast<int64_t>(all.kept.size()) / layers;
  const auto count = static_cast<int64_t>(part.kept.size()) / layers;
  for (int64_t l = 0; l < layers; ++l) {
    std::copy_n(part.kept.data() + l * count, count, all.kept.data() + l * total + first);
  }
  all.macs += part.macs;
  append_layers(all.trace.kept, std::move(part.trace.kept));
  append_layers(all.trace.scores, std::move(part.trace.scores));
  append_layers(all.trace.rows, std::move(part.trace.rows));
}

std::vector<float> dense_rows(const float* rows, int64_t count, int64_t ld, int64_t columns) {
  std::vector<float> dense;
  dense.reserve(static_cast<std::size_t>(count * columns));
  for (int64_t i = 0; i < count; ++i) {
    dense.insert(dense.end(), rows + i * ld, rows + i * ld + columns);
  }
  return dense;
}

}  // namespace

Precision resolve_precision(std::string_view request, IsaLevel level) {
  if (request == "fp32") return Precision::kFp32;
  if (request == "bf16") return Precision::kBf16;
  if (request == "int8") return Precision::kInt8;
  require(request == "bf16x3" || request == "auto", "unknown precision '", request,
          "'; supported: auto, fp32, bf16, int8, bf16x3");
  return kernels::table_for(level).tiles ? Precision::kBf16x3 : Precision::kFp32;
}

// A busy moment leaves no more workspaces behind than `most`; each may be as large as the largest
// micro-batch so far.
struct Engine::IdleWorkspaces {
  explicit IdleWorkspaces(int threads) : most(static_cast<std::size_t>(threads)) {}

  const std::size_t most;
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
    if (list.size() < most) list.push_back(std::move(workspace));
  }
};

Engine::Engine(EncoderConfig config, const TensorMap& tensors, int threads, std::string_view isa,
               std::string_view precision, std::optional<std::span<const std::byte>> packed)
    : isa_(resolve_isa(isa)),
      pool_(threads < 1 ? default_thread_count() : threads),
      serial_(1),
      context_{&kernels::table_for(isa_), &pool_},
      encoder_(std::move(config), context_, tensors, resolve_precision(precision, isa_), packed),
      idle_([threads = pool_.size()] { return std::make_unique<IdleWorkspaces>(threads); }) {}

Engine::~Engine() = default;

EngineOutput Engine::forward(const RaggedBatch& batch, const ForwardOptions& options, bool trace) {
  encoder_.check(options);
  validate(batch, encoder_.config());
  std::vector<Range> cuts = cut_for_threads(batch, pool_.size());
  const bool alone = !cuts.empty();
  if (!alone) cuts = cut(batch, kTokenBudget);
  const auto slice = [&](std::size_t i) { return batch.slice(cuts[i].begin, cuts[i].end); };
  if (cuts.size() == 1) return run_part(context_, batch, options, trace);

  std::vector<EngineOutput> parts(cuts.size());
  if (alone) {
    const Context context{context_.kernels, &serial_};
    std::mutex failing;
    std::exception_ptr failure;
    pool_.for_each(std::ssize(cuts), [&](int64_t task, int) {
      const auto i = static_cast<std::size_t>(task);
      try {
        parts[i] = run_part(context, slice(i), options, trace);
      } catch (...) {
        const std::lock_guard lock(failing);
        failure = std::current_exception();
      }
    });
    if (failure) std::rethrow_exception(failure);
  } else {
    for (std::size_t i = 0; i < cuts.size(); ++i) {
      parts[i] = run_part(context_, slice(i), options, trace);
    }
  }

  EngineOutput output;
  const int64_t layers = encoder_.config().layers;
  output.kept.resize(static_cast<std::size_t>(layers * batch.sequences));
  output.cu_kept.push_back(0);
  for (std::size_t i = 0; i < cuts.size(); ++i) {
    append(output, std::move(parts[i]), cuts[i].begin, layers);
  }
  return output;
}

// One micro-batch in a workspace of its own.
EngineOutput Engine::run_part(const Context& context, const RaggedBatch& part,
                              const ForwardOptions& options, bool trace) {
  const EncoderConfig& config = encoder_.config();
  EngineOutput output;
  ForwardOptions part_options = options;
  if (trace) {
    output.trace = empty_trace(part, options, config.layers);
    part_options.trace = &output.trace;
  }
  IdleWorkspaces& idle = idle_.get();
  std::unique_ptr<Workspace> workspace = idle.take();
  Workspace& ws = *workspace;
  encoder_.reserve(ws, encoder_.workspace_plan(part, part_options, context.pool->size()));
  const ForwardResult result = encoder_.forward(context, ws, part, part_options);

  output.cu_kept.push_back(0);
  if (result.hidden) {
    const int64_t rows = result.hidden_begin[part.sequences];
    output.hidden = dense_rows(result.hidden, rows, ws.ld_hidden, config.hidden);
    output.positions.assign(result.positions, result.positions + rows);
    output.cu_kept.assign(result.hidden_begin, result.hidden_begin + part.sequences + 1);
  }
  if (result.pooled) {
    output.pooled_columns = result.pooled_columns;
    output.pooled = dense_rows(result.pooled, part.sequences, ws.ld_pooled, result.pooled_columns);
  }
  if (result.logits) {
    output.logit_columns = encoder_.weights().head_out.outputs;
    output.logits =
        dense_rows(result.logits, result.logit_rows, ws.ld_logits, output.logit_columns);
  }
  output.kept.assign(ws.kept_counts.data(), ws.kept_counts.data() + config.layers * part.sequences);
  output.macs = result.macs;
  idle.give(std::move(workspace));
  return output;
}

}  // namespace tokprune
