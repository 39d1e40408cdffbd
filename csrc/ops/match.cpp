#include "ops/match.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/math.h"
#include "kernels/abi.h"

namespace tokprune {

using kernels::kPanel;

namespace {

// Rows of cosines computed at once: they stay in the first-level cache.
constexpr int64_t kBlockRows = 24;

// dst[0, round_up(cols, 16)) = the row scaled to unit length, padded with zeros.
void unit_row(const StateRows& states, int32_t row, float* dst) {
  const float* src = states.data + row * states.ld;
  const int64_t padded = round_up(states.cols, kPanel);
  std::copy_n(src, states.cols, dst);
  std::fill(dst + states.cols, dst + padded, 0.0f);
  for (int64_t p = 1; p < states.parts; ++p) {
    const float* part = src + p * states.cols;
    for (int64_t j = 0; j < states.cols; ++j) dst[j] += part[j];
  }
  // Independent sums, so that the compiler may use vectors; their order is fixed.
  float lanes[kPanel] = {};
  for (int64_t j = 0; j < padded; j += kPanel) {
    for (int64_t i = 0; i < kPanel; ++i) lanes[i] += dst[j + i] * dst[j + i];
  }
  float squares = 0.0f;
  for (float lane : lanes) squares += lane;
  const float inverse = 1.0f / std::max(std::sqrt(squares), 1e-12f);
  for (int64_t j = 0; j < padded; ++j) dst[j] *= inverse;
}

}  // namespace

// All cosines between two lists of rows, a block at a time.
class Cosines {
 public:
  Cosines(const Context& context, const MatchScratch& scratch, const StateRows& states,
          std::span<const int32_t> from, std::span<const int32_t> to)
      : kernels_(*context.kernels),
        scratch_(scratch),
        ld_(round_up(states.cols, kPanel)),
        from_(std::ssize(from)),
        to_(std::ssize(to)) {
    float* unit = scratch.to_.data();
    for (int64_t i = 0; i < to_; ++i) unit_row(states, to[i], unit + i * ld_);
    kernels_.pack_transposed(
        {.src = unit, .ld_src = ld_, .dst = scratch.packed_.data(), .n = to_, .k = ld_});
    unit = scratch.from_.data();
    for (int64_t i = 0; i < from_; ++i) unit_row(states, from[i], unit + i * ld_);
  }

  // body(i, cosines[to]) for every i of `from`.
  template <class Body>
  void for_each_row(const Body& body) const {
    const int64_t ld_block = round_up(to_, kPanel);
    float* block = scratch_.block_.data();
    for (int64_t begin = 0; begin < from_; begin += kBlockRows) {
      const int64_t rows = std::min(kBlockRows, from_ - begin);
      kernels_.gemm({.a = scratch_.from_.data() + begin * ld_,
                     .lda = ld_,
                     .b = scratch_.packed_.data(),
                     .b_panel_stride = ld_ * kPanel,
                     .c = block,
                     .ldc = ld_block,
                     .m = rows,
                     .panels = ld_block / kPanel,
                     .k = ld_,
                     .accumulate = false,
                     .epilogue = {}});
      for (int64_t i = 0; i < rows; ++i) body(begin + i, block + i * ld_block);
    }
  }

 private:
  const kernels::KernelTable& kernels_;
  const MatchScratch& scratch_;
  int64_t ld_, from_, to_;
};

MatchScratch::MatchScratch(int64_t max_rows, int64_t max_cols) {
  const int64_t cols = round_up(max_cols, kPanel);
  const int64_t rows = round_up(max_rows, kPanel);
  for (AlignedArray<float>* array : {&from_, &to_, &packed_}) {
    *array = AlignedArray<float>(static_cast<std::size_t>(rows * cols));
  }
  block_ = AlignedArray<float>(static_cast<std::size_t>(kBlockRows * rows));
}

void best_matches(const Context& context, const MatchScratch& scratch, const StateRows& states,
                  std::span<const int32_t> from, std::span<const int32_t> to,
                  const Matches& matches) {
  const Cosines cosines(context, scratch, states, from, to);
  cosines.for_each_row([&](int64_t i, float* cosine) {
    for (std::size_t j = 0; states.bias && j < to.size(); ++j) cosine[j] += states.bias[to[j]];
    const float* best = std::max_element(cosine, cosine + to.size());
    matches.partner[i] = static_cast<int32_t>(best - cosine);
    matches.similarity[i] =
        *best + (states.bias ? states.bias[from[static_cast<std::size_t>(i)]] : 0.0f);
  });
}

void similarity_energies(const Context& context, const MatchScratch& scratch,
                         const StateRows& states, std::span<const int32_t> rows,
                         const EnergyArgs& args, float* energy) {
  const Cosines cosines(context, scratch, states, rows, rows);
  const auto count = std::ssize(rows);
  cosines.for_each_row([&](int64_t i, const float* cosine) {
    float sum = 0.0f;
    for (int64_t j = 0; j < count; ++j) {
      const float x = cosine[j];
      sum += x >= args.margin ? x : args.alpha * (std::exp(x - args.margin) - 1.0f);
    }
    energy[i] = sum / static_cast<float>(count);
  });
}

}  // namespace tokprune
