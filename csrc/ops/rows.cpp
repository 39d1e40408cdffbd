#include "ops/rows.h"

#include "base/math.h"

namespace tokprune {
namespace {

// Rows a thread should at least get before waking it pays.
constexpr int64_t kMinRowsPerPart = 16;

template <class Args, class Narrow>
void split_rows(const Context& context, const Args& args, void (*kernel)(const Args&),
                Narrow narrow) {
  if (args.rows < 2 * kMinRowsPerPart || context.pool->size() == 1) {
    if (args.rows > 0) kernel(args);
    return;
  }
  context.pool->run([&](int part) {
    const Range range = split_range(args.rows, context.pool->size(), part);
    Args piece = args;
    piece.rows = range.size();
    narrow(piece, range.begin);
    kernel(piece);
  });
}

kernels::ReduceRowsArgs plain_copies(const float* src, float* dst, int64_t ld, int64_t cols,
                                     const int32_t* rows, int64_t count) {
  return {.src = src,
          .ld_src = ld,
          .row_begin = nullptr,
          .column = rows,
          .weight = nullptr,
          .dst = dst,
          .ld_dst = ld,
          .rows = count,
          .cols = cols};
}

}  // namespace

void layer_norm(const Context& context, const kernels::LayerNormArgs& args) {
  split_rows(context, args, context.kernels->layer_norm,
             [](kernels::LayerNormArgs& piece, int64_t begin) {
               if (piece.src_rows) {
                 piece.src_rows += begin;
               } else {
                 piece.src += begin * piece.ld_src;
               }
               if (piece.dst_rows) {
                 piece.dst_rows += begin;
               } else {
                 piece.dst += begin * piece.ld_dst;
               }
             });
}

void embed(const Context& context, const kernels::EmbedArgs& args) {
  split_rows(context, args, context.kernels->embed, [](kernels::EmbedArgs& piece, int64_t begin) {
    piece.word_id += begin;
    piece.position_id += begin;
    if (piece.type_id) piece.type_id += begin;
    piece.dst += begin * piece.ld_dst;
  });
}

void reduce_rows(const Context& context, const kernels::ReduceRowsArgs& args) {
  split_rows(context, args, context.kernels->reduce_rows,
             [](kernels::ReduceRowsArgs& piece, int64_t begin) {
               if (piece.row_begin) {
                 piece.row_begin += begin;
               } else {
                 piece.column += begin;
               }
               piece.dst += begin * piece.ld_dst;
             });
}

void gather_rows(const Context& context, const float* src, float* dst, int64_t ld, int64_t cols,
                 const int32_t* rows, int64_t count) {
  reduce_rows(context, plain_copies(src, dst, ld, cols, rows, count));
}

void compact_rows(const Context& context, float* data, int64_t first, int64_t ld, int64_t cols,
                  const int32_t* rows, int64_t count) {
  // On one thread: a second one could overwrite rows that the first has yet to read.
  context.kernels->reduce_rows(plain_copies(data, data + first * ld, ld, cols, rows, count));
}

}  // namespace tokprune
