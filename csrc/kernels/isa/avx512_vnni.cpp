// AVX-512 with VNNI: the level below with faster int8 products.
#include <immintrin.h>

#include "kernels/abi.h"

namespace tokprune::kernels {
namespace {

#include "kernels/vec_avx512.inl"

#include "kernels/dot_avx512_vnni.inl"
#include "kernels/gemm_int8.inl"

}  // namespace

const KernelTable kAvx512VnniTable = {.gemm_int8 = gemm_int8};

}  // namespace tokprune::kernels
