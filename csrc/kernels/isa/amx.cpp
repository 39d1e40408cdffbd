// AMX: the level below with matrix tiles.
#include <immintrin.h>

#include <cstddef>

#include "kernels/abi.h"

namespace tokprune::kernels {
namespace {

#include "kernels/vec_avx512.inl"

#ifdef TOKPRUNE_EMULATE_TILES
#include "kernels/tile_registers_emulated.inl"
#else
#include "kernels/tile_registers.inl"
#endif

#include "kernels/bf16_packing.inl"
#include "kernels/gemm_tiles.inl"

}  // namespace

const KernelTable kAmxTable = {
    .tiles = true,
    .gemm_int8 = gemm_int8,
    .gemm_bf16 = gemm_bf16,
    .round_rows = round_rows,
    .pack_transposed_bf16 = pack_transposed_bf16,
    .pack_rows_bf16 = pack_rows_bf16,
};

}  // namespace tokprune::kernels
