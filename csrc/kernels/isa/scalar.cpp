#include "kernels/abi.h"

namespace tokprune::kernels {
namespace {

constexpr int kGemmRows = 2;
constexpr int kGemmPanels = 1;

#include "kernels/dot_scalar.inl"
#include "kernels/vec_scalar.inl"

#include "kernels/isa/table.inl"

}  // namespace

const KernelTable kScalarTable = {
    .gemm_rows = kGemmRows,
#define TOKPRUNE_KERNEL(name, Args) .name = name,
#include "kernels/manifest.inc"
};

}  // namespace tokprune::kernels
