#include "ops/packed_linear.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/math.h"

namespace tokprune {
namespace {

using kernels::kPanel;

int64_t depth_of(Precision precision, int64_t inputs) {
  switch (precision) {
    case Precision::kFp32: return inputs;
    case Precision::kInt8: return round_up(inputs, kernels::kInt8Depth);
    case Precision::kBf16:
    case Precision::kBf16x3: break;
  }
  return round_up(inputs, kernels::kBf16Depth);
}

std::size_t weight_size(Precision precision) {
  switch (precision) {
    case Precision::kFp32: return sizeof(float);
    case Precision::kInt8: return sizeof(int8_t);
    case Precision::kBf16:
    case Precision::kBf16x3: break;
  }
  return sizeof(uint16_t);
}

// Round to nearest even, for finite values.
uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float from_bf16(uint16_t value) { return std::bit_cast<float>(static_cast<uint32_t>(value) << 16); }

// One output column into its panel: element k of lane j lies at dst[(k / 2) * 32 + 2 j + k % 2].
void pack_bf16(const float* src, int64_t inputs, int64_t lane, uint16_t* dst, uint16_t* low) {
  for (int64_t k = 0; k < inputs; ++k) {
    const int64_t at = k / 2 * (2 * kPanel) + 2 * lane + k % 2;
    dst[at] = to_bf16(src[k]);
    if (low) low[at] = to_bf16(src[k] - from_bf16(dst[at]));
  }
}

// As above in groups of four. Returns the scale; adds up the rounded values.
float pack_int8(const float* src, int64_t inputs, int64_t lane, int8_t* dst, int32_t& sum) {
  float top = 0;
  for (int64_t k = 0; k < inputs; ++k) top = std::max(top, std::fabs(src[k]));
  const float inverse = top > 0 ? 127.0f / top : 0.0f;
  sum = 0;
  for (int64_t k = 0; k < inputs; ++k) {
    // Rounds half to even like every other rounding here; |src * inverse| < 2^22.
    constexpr float kMagic = 12582912.0f;
    const float rounded = (src[k] * inverse + kMagic) - kMagic;
    const auto value = static_cast<int8_t>(static_cast<int32_t>(rounded));
    dst[k / 4 * (4 * kPanel) + 4 * lane + k % 4] = value;
    sum += value;
  }
  return top / 127.0f;
}

}  // namespace

PackedLinear::PackedLinear(Arena& arena, Precision chosen, int64_t columns_in, int64_t columns_out)
    : precision(chosen),
      inputs(columns_in),
      depth(depth_of(chosen, columns_in)),
      outputs(round_up(columns_out, kPanel)) {
  require(precision != Precision::kInt8 || depth <= 1 << 16, "a layer of ", inputs,
          " inputs is too wide for int8; at most 65536");
  const int64_t bytes = depth * outputs * static_cast<int64_t>(weight_size(precision));
  weight = arena.take<std::byte>(bytes);
  if (precision == Precision::kBf16x3) weight_low = arena.take<std::byte>(bytes);
  bias = arena.take<float>(outputs);
  if (precision == Precision::kInt8) {
    scale = arena.take<float>(outputs);
    column_sum = arena.take<int32_t>(outputs);
  }
}

void PackedLinear::set(const Context& context, int64_t column, int64_t rows, const float* source,
                       const float* source_bias) {
  const int64_t tiles = ceil_div(rows, kPanel);
  context.pool->for_each(tiles, [&](int64_t tile, int) {
    const int64_t row = tile * kPanel;
    const int64_t lanes = std::min(kPanel, rows - row);
    const int64_t at = (column + row) * depth;
    if (precision == Precision::kFp32) {
      context.kernels->pack_transposed({.src = source + row * inputs,
                                        .ld_src = inputs,
                                        .dst = reinterpret_cast<float*>(weight.data()) + at,
                                        .n = lanes,
                                        .k = inputs});
      return;
    }
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const float* src = source + (row + lane) * inputs;
      if (precision == Precision::kInt8) {
        const auto j = static_cast<std::size_t>(column + row + lane);
        scale[j] = pack_int8(src, inputs, lane, reinterpret_cast<int8_t*>(weight.data()) + at,
                             column_sum[j]);
      } else {
        auto* low = weight_low.empty() ? nullptr : reinterpret_cast<uint16_t*>(weight_low.data());
        pack_bf16(src, inputs, lane, reinterpret_cast<uint16_t*>(weight.data()) + at,
                  low ? low + at : nullptr);
      }
    }
  });
  if (source_bias) {
    std::memcpy(bias.data() + column, source_bias, static_cast<std::size_t>(rows) * sizeof(float));
  }
}

}  // namespace tokprune
