#include "kernels/registry.h"

#include <array>
#include <string>

#include "base/check.h"

namespace tokprune::kernels {
namespace {

void inherit(KernelTable& table, const KernelTable& lower) {
#define TOKPRUNE_KERNEL(name, Args) \
  if (!table.name) table.name = lower.name;
#include "kernels/manifest.inc"
}

struct Tables {
  KernelTable scalar = kScalarTable;
  KernelTable avx2 = kAvx2Table;
  KernelTable avx512 = kAvx512Table;
  Tables() {
    inherit(avx2, scalar);
    inherit(avx512, avx2);
  }
};

}  // namespace

const KernelTable& table_for(IsaLevel level) {
  static const Tables tables;
  switch (level) {
    case IsaLevel::kAvx512: return tables.avx512;
    case IsaLevel::kAvx2: return tables.avx2;
    case IsaLevel::kScalar: break;
  }
  return tables.scalar;
}

const std::vector<Activation>& activations() {
  static const std::vector<Activation> list = {
#define TOKPRUNE_ACTIVATION(name, hf_names) {#name, hf_names, Epilogue::kBias_##name},
#include "kernels/manifest.inc"
  };
  return list;
}

Epilogue bias_activation(std::string_view name) {
  std::string known;
  for (const Activation& activation : activations()) {
    if (activation.name == name) return activation.epilogue;
    known += (known.empty() ? "" : ", ");
    known += activation.name;
  }
  require(false, "activation '", name, "' is unknown; supported: ", known);
  return Epilogue::kNone;
}

}  // namespace tokprune::kernels
