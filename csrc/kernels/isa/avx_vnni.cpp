// AVX2 with VNNI: the level below with faster int8 products.
#include <immintrin.h>

#include "kernels/abi.h"

namespace tokprune::kernels {
namespace {

#include "kernels/vec_avx2.inl"

#include "kernels/dot_avx_vnni.inl"
#include "kernels/gemm_int8.inl"

}  // namespace

const KernelTable kAvxVnniTable = {.gemm_int8 = gemm_int8};

}  // namespace tokprune::kernels
