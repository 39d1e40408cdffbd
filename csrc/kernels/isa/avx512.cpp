#include <immintrin.h>

#include "kernels/abi.h"

namespace tokprune::kernels {
namespace {

constexpr int kGemmRows = 12;
constexpr int kGemmPanels = 2;

#include "kernels/dot_avx512.inl"
#include "kernels/vec_avx512.inl"

#include "kernels/isa/table.inl"

}  // namespace

const KernelTable kAvx512Table = {
    .gemm_rows = kGemmRows,
#define TOKPRUNE_KERNEL(name, Args) .name = name,
#include "kernels/manifest.inc"
};

}  // namespace tokprune::kernels
