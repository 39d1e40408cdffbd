// Row-wise ops split over the threads: layer_norm, embed, reduce_rows.
#pragma once

#include "kernels/abi.h"
#include "ops/context.h"

namespace tokprune {

void layer_norm(const Context& context, const kernels::LayerNormArgs& args);
void embed(const Context& context, const kernels::EmbedArgs& args);
void reduce_rows(const Context& context, const kernels::ReduceRowsArgs& args);

// dst[i] = src[rows[i]]; src and dst do not overlap.
void gather_rows(const Context& context, const float* src, float* dst, int64_t ld, int64_t cols,
                 const int32_t* rows, int64_t count);

// data[first + i] = data[rows[i]] in place; `rows` ascends and rows[i] >= first + i.
void compact_rows(const Context& context, float* data, int64_t first, int64_t ld, int64_t cols,
                  const int32_t* rows, int64_t count);

}  // namespace tokprune
