// AVX-512 with BF16: the level below with bfloat16 products.
#include <immintrin.h>

#include "kernels/abi.h"

namespace tokprune::kernels {
namespace {

#include "kernels/vec_avx512.inl"

#include "kernels/bf16_packing.inl"
#include "kernels/gemm_bf16.inl"

}  // namespace

const KernelTable kAvx512Bf16Table = {
    .gemm_bf16 = gemm_bf16,
    .round_rows = round_rows,
    .pack_transposed_bf16 = pack_transposed_bf16,
    .pack_rows_bf16 = pack_rows_bf16,
};

}  // namespace tokprune::kernels
