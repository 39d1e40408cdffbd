// The body of one level's translation unit: every kernel, then the table that points at them.
#include "kernels/activations.inl"
#include "kernels/attention.inl"
#include "kernels/gemm.inl"
#include "kernels/pack.inl"
#include "kernels/rows.inl"
