// Random operands for the products of tile kernels, and calls on parts of them.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "base/math.h"
#include "kernels/abi.h"

namespace tokprune::testing {

using namespace kernels;

constexpr int64_t kRows = 70;
constexpr int64_t kPanels = 7;
constexpr int64_t kColumns = kPanels * kPanel;
inline std::mt19937 generator(20240607);

inline std::vector<float> random_floats(int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& x : values) x = normal(generator);
  return values;
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

// Round to nearest even; finite x.
inline uint16_t to_bf16(float x) {
  const uint32_t bits = bits_of(x);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float from_bf16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// b[k, kColumns] to panels of `depth` consecutive k per column.
template <class T>
std::vector<T> pack(const std::vector<T>& b, int64_t k, int64_t depth) {
  std::vector<T> packed(b.size());
  T* to = packed.data();
  for (int64_t panel = 0; panel < kPanels; ++panel) {
    for (int64_t kk = 0; kk < k; kk += depth) {
      for (int64_t j = 0; j < kPanel; ++j) {
        for (int64_t d = 0; d < depth; ++d)
          *to++ = b.data()[(kk + d) * kColumns + panel * kPanel + j];
      }
    }
  }
  return packed;
}

// Rows and panels of the largest product that one call computes.
struct Part {
  int64_t row = 0;
  int64_t m = kRows;
  int64_t panel = 0;
  int64_t panels = kPanels;
};

// A's rows of a part at a stride of their own. What a kernel may read but must not use is 0xff: 255
// or NaN. What it must not read is not there, for AddressSanitizer to see.
template <class T>
struct Rows {
  std::vector<T> values;
  int64_t ld;

  Rows(const std::vector<T>& all, int64_t k, const Part& part) : ld(k + 32) {
    const int64_t readable = round_up(part.m, kTileRows);
    values.assign(readable > 0 ? static_cast<std::size_t>((readable - 1) * ld + k) : 0,
                  static_cast<T>(-1));
    for (int64_t i = 0; i < part.m; ++i) {
      std::memcpy(values.data() + i * ld, all.data() + (part.row + i) * k,
                  static_cast<std::size_t>(k) * sizeof(T));
    }
  }
};

struct EpilogueData {
  std::vector<float> bias = random_floats(kColumns);
  std::vector<float> residual = random_floats(kRows * kColumns);
  std::vector<float> row_scale = random_floats(kRows);
  std::vector<int32_t> rows;

  EpilogueData() {
    for (int32_t i = 0; i < kRows; ++i) rows.push_back((i * 11 + 3) % static_cast<int32_t>(kRows));
  }
  EpilogueArgs args(Epilogue kind, const Part& part) const {
    return {.kind = kind,
            .bias = bias.data() + part.panel * kPanel,
            .residual = residual.data() + part.panel * kPanel,
            .ld_residual = kColumns,
            .residual_rows = rows.data() + part.row,
            .row_scale = row_scale.data() + part.row};
  }
};

constexpr Epilogue kKinds[] = {Epilogue::kNone, Epilogue::kRowScale, Epilogue::kBias,
                               Epilogue::kBiasResidual, Epilogue::kBias_gelu};

struct Int8Data {
  int64_t k;
  std::vector<uint8_t> a;
  std::vector<int8_t> b;
  std::vector<int8_t> packed;
  std::vector<int32_t> zero, b_sum = std::vector<int32_t>(kColumns);
  std::vector<float> a_scale = random_floats(kRows), b_scale = random_floats(kColumns);

  explicit Int8Data(int64_t inner) : k(inner) {
    for (int64_t i = 0; i < kRows * k; ++i) a.push_back(static_cast<uint8_t>(generator()));
    for (int64_t i = 0; i < kColumns * k; ++i) b.push_back(static_cast<int8_t>(generator()));
    for (int64_t i = 0; i < kRows; ++i) zero.push_back(static_cast<int32_t>(generator() % 256));
    for (int64_t i = 0; i < kColumns * k; ++i) {
      b_sum[static_cast<std::size_t>(i % kColumns)] += b[static_cast<std::size_t>(i)];
    }
    packed = pack(b, k, 4);
  }
  void run(const KernelTable& table, const Part& part, const EpilogueArgs& epilogue, float* c,
           int64_t ldc) const {
    const Rows rows(a, k, part);
    table.gemm_int8({.a = rows.values.data(),
                     .lda = rows.ld,
                     .a_scale = a_scale.data() + part.row,
                     .a_zero = zero.data() + part.row,
                     .b = packed.data() + part.panel * kPanel * k,
                     .b_panel_stride = kPanel * k,
                     .b_scale = b_scale.data() + part.panel * kPanel,
                     .b_sum = b_sum.data() + part.panel * kPanel,
                     .c = c,
                     .ldc = ldc,
                     .m = part.m,
                     .panels = part.panels,
                     .k = k,
                     .epilogue = epilogue});
  }
};

// Terms: [0] the rounded operand, [1] the rounded rest.
struct Bf16Data {
  int64_t k;
  bool three_terms;
  std::vector<float> a, b;
  std::vector<uint16_t> a_term[2], b_term[2], packed[2];

  Bf16Data(int64_t inner, bool three)
      : k(inner), three_terms(three), a(random_floats(kRows * k)), b(random_floats(k * kColumns)) {
    split(a, a_term);
    split(b, b_term);
    for (int t = 0; t < 2; ++t) packed[t] = pack(b_term[t], k, 2);
  }
  static void split(const std::vector<float>& values, std::vector<uint16_t> (&term)[2]) {
    for (float x : values) {
      term[0].push_back(to_bf16(x));
      term[1].push_back(to_bf16(x - from_bf16(term[0].back())));
    }
  }
  void run(const KernelTable& table, const Part& part, const EpilogueArgs& epilogue, float* c,
           int64_t ldc) const {
    const Rows high(a_term[0], k, part);
    const Rows low(a_term[1], k, part);
    const int64_t panel = part.panel * kPanel * k;
    table.gemm_bf16({.a = high.values.data(),
                     .a_low = three_terms ? low.values.data() : nullptr,
                     .lda = high.ld,
                     .b = packed[0].data() + panel,
                     .b_low = three_terms ? packed[1].data() + panel : nullptr,
                     .b_panel_stride = kPanel * k,
                     .c = c,
                     .ldc = ldc,
                     .m = part.m,
                     .panels = part.panels,
                     .k = k,
                     .epilogue = epilogue});
  }
};

}  // namespace tokprune::testing
