// Engine::forward from several threads at once gives the bits of a single caller.
#include <cstdio>
#include <span>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "kernels/registry.h"
#include "model/engine.h"
#include "random_model.h"

namespace tokprune::testing {
namespace {

bool equal(const EngineOutput& a, const EngineOutput& b) {
  return a.hidden == b.hidden && a.positions == b.positions && a.cu_kept == b.cu_kept &&
         a.pooled == b.pooled && a.logits == b.logits && a.kept == b.kept && a.macs == b.macs;
}

void check_level(IsaLevel level, int threads, const NamedPrecision& arithmetic) {
  const std::unique_ptr<RandomModel> model = random_model();
  Engine engine(model->config, model->tensors, threads, isa_name(level), arithmetic.name, {});
  const std::vector<NamedPlan> plans = pruning_plans(model->config);
  std::vector<RandomBatch> batches;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    const auto extra = static_cast<int32_t>(seed * 9);
    batches.emplace_back(model->config, std::vector<int32_t>{17 + extra, 1, 26, 2 + extra}, seed);
  }
  // Large enough for every thread to run parts of its own; only for the first plan.
  if (threads > 1) batches.emplace_back(model->config, std::vector<int32_t>(48, 33), 3);
  const auto run = [&](std::size_t plan, std::size_t batch) {
    ForwardOptions options;
    options.plan = plans[plan].plan.get();
    return engine.forward(batches[batch].view(), options, /*trace=*/false);
  };
  const auto batches_of = [&](std::size_t plan) { return plan == 0 ? batches.size() : 3; };
  std::vector<std::vector<EngineOutput>> expected(plans.size());
  for (std::size_t p = 0; p < plans.size(); ++p) {
    for (std::size_t b = 0; b < batches_of(p); ++b) expected[p].push_back(run(p, b));
  }
  std::vector<std::thread> callers;
  callers.reserve(3);
  for (std::size_t caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&, caller] {
      for (std::size_t p = 0; p < plans.size(); ++p) {
        const std::size_t plan = (p + 2 * caller) % plans.size();
        for (std::size_t b = 0; b < batches_of(plan); ++b) {
          const std::size_t batch = (b + caller) % batches_of(plan);
          CHECK(equal(run(plan, batch), expected[plan][batch]));
        }
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

}  // namespace
}  // namespace tokprune::testing

int main() {
  using tokprune::testing::precisions_of;
  std::span levels = tokprune::supported_isa_levels();
#ifdef __SANITIZE_THREAD__
  // Races do not depend on kernels, and watched kernels take minutes.
  levels = levels.last(1);
#endif
  for (tokprune::IsaLevel level : levels) {
    tokprune::testing::check_level(level, 1, {"fp32", tokprune::Precision::kFp32});
    for (const auto& arithmetic : precisions_of(tokprune::kernels::table_for(level))) {
      tokprune::testing::check_level(level, 3, arithmetic);
    }
  }
  std::puts("concurrent forward ok");
  return 0;
}
