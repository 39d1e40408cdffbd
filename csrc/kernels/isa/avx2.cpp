#include <immintrin.h>

#include "kernels/abi.h"

namespace tokprune::kernels {
namespace {

constexpr int kGemmRows = 6;
constexpr int kGemmPanels = 1;

#include "kernels/dot_avx2.inl"
#include "kernels/vec_avx2.inl"

#include "kernels/isa/table.inl"

}  // namespace

const KernelTable kAvx2Table = {
    .gemm_rows = kGemmRows,
#define TOKPRUNE_KERNEL(name, Args) .name = name,
#include "kernels/manifest.inc"
};

}  // namespace tokprune::kernels
