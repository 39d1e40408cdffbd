// The body of a whole level's translation unit: every kernel that needs no matrix tiles.
#include "kernels/attention.inl"
#include "kernels/gemm.inl"
#include "kernels/gemm_int8.inl"
#include "kernels/pack.inl"
#include "kernels/quantize.inl"
#include "kernels/quantize_heads.inl"
#include "kernels/rows.inl"
