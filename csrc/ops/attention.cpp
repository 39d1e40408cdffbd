#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/math.h"
#include "ops/attention_product.h"

namespace tokprune {
namespace {

using kernels::kPanel;

// One (sequence, head) pair.
struct Head {
  const AttentionArgs& args;
  const kernels::KernelTable& kernels;
  const AttentionScratch& scratch;
  Precision precision;  // attention_precision
  RowSpan rows;
  int64_t head;

  int64_t dim() const { return args.shape.head_dim; }
  const float* part(int64_t index) const {
    return args.qkv + rows.begin * args.ld_qkv + index * args.shape.part_stride + head * dim();
  }

  HeadProduct key_product() const {
    return {kernels, precision, scratch.keys(), scratch.rounded(), dim(), rows.count};
  }
  HeadProduct value_product() const {
    return {kernels, precision, scratch.values(), scratch.rounded(), rows.count, dim()};
  }
  void pack_keys() const { key_product().pack_transposed(part(1), args.ld_qkv); }
  void pack_values() const { value_product().pack_rows(part(2), args.ld_qkv); }

  // Unnormalised probabilities of query rows [q0, q0 + queries), and the inverse of their sums.
  void probabilities(int64_t q0, int64_t queries, float* p, int64_t ld, float* inv_sum) const {
    key_product().multiply(part(0) + q0 * args.ld_qkv, args.ld_qkv, queries, p, ld, nullptr);
    float scale = args.shape.scale;
    if (args.bias.table) {
      const int64_t max = args.bias.max_positions;
      kernels.relative_bias({.s = p,
                             .ld = ld,
                             .rows = queries,
                             .n = rows.count,
                             .scale = scale,
                             .table = args.bias.table + head * (2 * max - 1) + max - 1,
                             .query_position = args.position + rows.begin + q0,
                             .key_position = args.position + rows.begin});
      scale = 1.0f;
    }
    if (args.key_bias) {
      kernels.key_bias({.s = p,
                        .ld = ld,
                        .rows = queries,
                        .n = rows.count,
                        .scale = scale,
                        .bias = args.key_bias + rows.begin});
      scale = 1.0f;
    }
    const bool entropies =
        std::any_of(args.statistics.begin(), args.statistics.end(),
                    [](const Statistic& s) { return s.kind != Statistic::Kind::kColumnSum; });
    if (entropies) std::copy_n(p, queries * ld, scratch.terms());
    kernels.softmax(
        {.s = p, .ld = ld, .rows = queries, .n = rows.count, .scale = scale, .inv_sum = inv_sum});
    if (entropies) entropy_terms(queries, p, ld, scale, inv_sum);
  }

  // Turns the scores in scratch.terms() into -A ln A.
  void entropy_terms(int64_t queries, const float* p, int64_t ld, float scale,
                     const float* inv_sum) const {
    float log_sum[kMaxQueryBlock];
    for (int64_t i = 0; i < queries; ++i) log_sum[i] = -std::log(inv_sum[i]);
    kernels.entropy({.p = p,
                     .t = scratch.terms(),
                     .ld = ld,
                     .rows = queries,
                     .n = rows.count,
                     .scale = scale,
                     .inv_sum = inv_sum,
                     .log_sum = log_sum,
                     .row_sum = scratch.row_entropy()});
  }

  bool votes(const Statistic& statistic, int64_t query) const {
    switch (statistic.query) {
      case Statistic::Query::kAlive: return true;
      case Statistic::Query::kFirst: return query == 0;
      case Statistic::Query::kSegment: break;
    }
    return args.segment[rows.begin + query] == statistic.segment;
  }

  void clear_statistics() const {
    for (const Statistic& statistic : args.statistics) {
      float* sum = statistic.sum + head * statistic.ld + rows.begin;
      std::fill_n(sum, rows.count, 0.0f);
    }
  }

  void add_statistics(int64_t q0, int64_t queries, float* p, int64_t ld,
                      const float* inv_sum) const {
    for (const Statistic& statistic : args.statistics) {
      if (statistic.kind == Statistic::Kind::kRowEntropy) {
        std::copy_n(scratch.row_entropy(), queries,
                    statistic.sum + head * statistic.ld + rows.begin + q0);
        continue;
      }
      float* weight = scratch.row_weight();
      if (statistic.kind == Statistic::Kind::kColumnEntropy) {
        std::fill_n(weight, queries, 1.0f);
        add_rows(statistic, scratch.terms(), ld, queries);
        continue;
      }
      bool any = false;
      for (int64_t i = 0; i < queries; ++i) {
        const bool vote = votes(statistic, q0 + i);
        weight[i] = vote ? inv_sum[i] : 0.0f;
        any |= vote;
      }
      if (!any) continue;
      float own[kMaxQueryBlock];
      if (!statistic.diagonal) {
        for (int64_t i = 0; i < queries; ++i) own[i] = std::exchange(p[i * ld + q0 + i], 0.0f);
      }
      add_rows(statistic, p, ld, queries);
      if (!statistic.diagonal) {
        for (int64_t i = 0; i < queries; ++i) p[i * ld + q0 + i] = own[i];
      }
    }
  }

  // Adds rows, times scratch.row_weight(), to the sums of a statistic.
  void add_rows(const Statistic& statistic, const float* src, int64_t ld, int64_t count) const {
    // The kernel writes whole vectors; neighbouring sequences share the row of sums, so it works on
    // a private copy whose tail is not copied back.
    float* sum = statistic.sum + head * statistic.ld + rows.begin;
    float* acc = scratch.row_weight() + kMaxQueryBlock;
    std::copy_n(sum, rows.count, acc);
    kernels.column_sum({.p = src,
                        .ld = ld,
                        .rows = count,
                        .n = rows.count,
                        .row_weight = scratch.row_weight(),
                        .acc = acc});
    std::copy_n(acc, rows.count, sum);
  }

  void values(const float* p, int64_t ld, int64_t queries, const float* inv_sum, float* dst) const {
    // Whole panels are written, so a head narrower than its panels goes through scratch.
    const bool direct = dim() % kPanel == 0;
    const int64_t padded = round_up(dim(), kPanel);
    value_product().multiply(p, ld, queries, direct ? dst : scratch.output(),
                             direct ? args.ld_dst : padded, inv_sum);
    if (direct) return;
    for (int64_t i = 0; i < queries; ++i) {
      std::copy_n(scratch.output() + i * padded, dim(), dst + i * args.ld_dst);
    }
  }

  template <class Body>
  void for_each_block(int64_t queries, const Body& body) const {
    const bool in_tiles = precision != Precision::kFp32 && kernels.tiles;
    const int64_t block = in_tiles ? kTileQueryBlock : kQueryBlock;
    for (int64_t q0 = 0; q0 < queries; q0 += block) body(q0, std::min(block, queries - q0));
  }

  float* output(int64_t row) const { return args.dst + row * args.ld_dst + head * dim(); }
};

template <class Body>
void for_each_head(const Context& context, const AttentionArgs& args, const Body& body) {
  const int64_t heads = args.shape.heads;
  const auto tasks = static_cast<int64_t>(args.sequences.size()) * heads;
  const kernels::KernelTable& kernels = *context.kernels;
  context.pool->for_each(tasks, [&](int64_t task, int part) {
    const int64_t sequence = task / heads;
    const RowSpan rows = args.sequences[static_cast<std::size_t>(sequence)];
    if (rows.count == 0) return;
    const Precision precision = attention_precision(kernels, args.precision, rows.count);
    body(Head{args, kernels, args.scratch[part], precision, rows, task % heads}, sequence);
  });
}

}  // namespace

AttentionScratch::AttentionScratch(const AttentionShape& shape, int64_t max_keys) {
  const int64_t keys = round_up(max_keys, kPanel);
  const int64_t dim = round_up(shape.head_dim, kPanel);
  values_at_ = HeadProduct::packed_floats(dim, keys);
  block_at_ = values_at_ + HeadProduct::packed_floats(keys, dim);
  rounded_at_ = block_at_ + kMaxQueryBlock * keys;
  output_at_ = rounded_at_ + HeadProduct::rounded_floats(kMaxQueryBlock, std::max(keys, dim));
  weight_at_ = output_at_ + kMaxQueryBlock * dim;
  terms_at_ = weight_at_ + kMaxQueryBlock + keys;
  row_entropy_at_ = terms_at_ + kMaxQueryBlock * keys;
  memory_ = AlignedArray<float>(static_cast<std::size_t>(row_entropy_at_ + kMaxQueryBlock));
}

void attention(const Context& context, const AttentionArgs& args, bool first_row_only) {
  for_each_head(context, args, [&](const Head& head, int64_t sequence) {
    head.pack_keys();
    head.pack_values();
    head.clear_statistics();
    const int64_t ld = round_up(head.rows.count, kPanel);
    const int64_t total = first_row_only ? 1 : head.rows.count;
    float* p = head.scratch.block();
    float inv_sum[kMaxQueryBlock];
    head.for_each_block(total, [&](int64_t q0, int64_t queries) {
      head.probabilities(q0, queries, p, ld, inv_sum);
      head.add_statistics(q0, queries, p, ld, inv_sum);
      head.values(p, ld, queries, inv_sum,
                  head.output(first_row_only ? sequence : head.rows.begin + q0));
    });
  });
}

int64_t probability_floats(const AttentionShape& shape, int64_t keys) {
  return shape.heads * keys * round_up(keys, kPanel);
}

void attention_probabilities(const Context& context, const AttentionArgs& args,
                             const ProbabilityStore& store) {
  for_each_head(context, args, [&](const Head& head, int64_t sequence) {
    head.pack_keys();
    head.clear_statistics();
    const int64_t n = head.rows.count;
    const int64_t ld = round_up(n, kPanel);
    float* p = store.data + store.offset[sequence] + head.head * n * ld;
    float* inv_sum = store.inv_sum + head.head * store.ld + head.rows.begin;
    head.for_each_block(n, [&](int64_t q0, int64_t queries) {
      head.probabilities(q0, queries, p + q0 * ld, ld, inv_sum + q0);
      head.add_statistics(q0, queries, p + q0 * ld, ld, inv_sum + q0);
    });
  });
}

void attention_values(const Context& context, const AttentionArgs& args,
                      const ProbabilityStore& store, std::span<const KeptRows> kept) {
  for_each_head(context, args, [&](const Head& head, int64_t sequence) {
    const KeptRows& keep = kept[static_cast<std::size_t>(sequence)];
    if (keep.count == 0) return;
    head.pack_values();
    const int64_t n = head.rows.count;
    const int64_t ld = round_up(n, kPanel);
    float* p = store.data + store.offset[sequence] + head.head * n * ld;
    float* inv_sum = store.inv_sum + head.head * store.ld + head.rows.begin;
    for (int64_t i = 0; i < keep.count; ++i) {
      const int64_t from = keep.row[i] - head.rows.begin;
      if (from == i) continue;
      std::copy_n(p + from * ld, n, p + i * ld);
      inv_sum[i] = inv_sum[from];
    }
    head.for_each_block(keep.count, [&](int64_t q0, int64_t queries) {
      head.values(p + q0 * ld, ld, queries, inv_sum + q0, head.output(keep.out_begin + q0));
    });
  });
}

}  // namespace tokprune
