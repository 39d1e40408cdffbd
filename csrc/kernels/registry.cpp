#include "kernels/registry.h"

#include <array>
#include <string>

#include "base/check.h"

namespace tokprune::kernels {
namespace {

KernelTable inherit(KernelTable table, const KernelTable& lower) {
  if (table.gemm_rows == 0) table.gemm_rows = lower.gemm_rows;
#define TOKPRUNE_KERNEL(name, Args) \
  if (!table.name) table.name = lower.name;
#define TOKPRUNE_BF16_KERNEL TOKPRUNE_KERNEL
#include "kernels/manifest.inc"
  return table;
}

}  // namespace

const KernelTable& table_for(IsaLevel level) {
  static const KernelTable avx2 = inherit(kAvx2Table, kScalarTable);
  static const KernelTable avx_vnni = inherit(kAvxVnniTable, avx2);
  static const KernelTable avx512 = inherit(kAvx512Table, avx2);
  static const KernelTable avx512_vnni = inherit(kAvx512VnniTable, avx512);
  static const KernelTable avx512_bf16 = inherit(kAvx512Bf16Table, avx512_vnni);
  static const KernelTable amx = inherit(kAmxTable, avx512_vnni);
  switch (level) {
    case IsaLevel::kAmx: return amx;
    case IsaLevel::kAvx512Bf16: return avx512_bf16;
    case IsaLevel::kAvx512Vnni: return avx512_vnni;
    case IsaLevel::kAvx512: return avx512;
    case IsaLevel::kAvxVnni: return avx_vnni;
    case IsaLevel::kAvx2: return avx2;
    case IsaLevel::kScalar: break;
  }
  return kScalarTable;
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
