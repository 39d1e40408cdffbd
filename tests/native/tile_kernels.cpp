// Tile kernels on emulated tiles, and on real ones where the CPU has them: every number of rows and
// panels against other levels, against double precision and against the manual's definition.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "kernels/registry.h"
#include "tile_operands.h"

namespace tokprune::kernels {
extern const KernelTable kEmulatedAmxTable;  // isa/amx.cpp, see CMakeLists.txt
}

namespace {

using namespace tokprune::testing;
using tokprune::IsaLevel;
using tokprune::round_up;

constexpr float kCanary = -12345.0f;
constexpr double kUnit = 0x1p-24;  // relative error of one float32 rounding

// C of one call, [m, 16 * panels] without padding. Nothing around it may change.
template <class Data>
std::vector<float> multiply(const KernelTable& table, const Data& data, const Part& part,
                            const EpilogueArgs& epilogue) {
  const int64_t columns = part.panels * kPanel;
  const int64_t ld = columns + kPanel;
  std::vector<float> c(static_cast<std::size_t>((part.m + 3 * kTileRows) * ld), kCanary);
  float* first = c.data() + kTileRows * ld;
  data.run(table, part, epilogue, first, ld);
  std::vector<float> values;
  for (int64_t i = -kTileRows; i < part.m + 2 * kTileRows; ++i) {
    const float* row = first + i * ld;
    const int64_t written = i >= 0 && i < part.m ? columns : 0;
    values.insert(values.end(), row, row + written);
    for (int64_t j = written; j < ld; ++j) CHECK(row[j] == kCanary);
  }
  return values;
}

bool same_bits(const float* x, const float* y, int64_t n) {
  return std::memcmp(x, y, static_cast<std::size_t>(n) * sizeof(float)) == 0;
}

bool same_bits(const std::vector<float>& x, const std::vector<float>& y) {
  return x.size() == y.size() && same_bits(x.data(), y.data(), static_cast<int64_t>(x.size()));
}

// Every m and number of panels, somewhere in the matrix, gives the bits of the largest product.
template <class Data>
void check_parts(const KernelTable& table, const Data& data, const EpilogueData& epilogue) {
  std::vector<std::vector<float>> all;
  for (Epilogue kind : kKinds) all.push_back(multiply(table, data, {}, epilogue.args(kind, {})));
  for (int64_t m = 1; m <= kRows; ++m) {
    if (data.k > 1000 && m % 16 > 1 && m % 16 < 15) continue;
    for (int64_t panels = 1; panels <= kPanels; ++panels) {
      const Part part = {.row = (13 * m + 5 * panels) % (kRows - m + 1),
                         .m = m,
                         .panel = (m + panels) % (kPanels - panels + 1),
                         .panels = panels};
      const auto kind = static_cast<std::size_t>(m + panels) % std::size(kKinds);
      const std::vector<float> c = multiply(table, data, part, epilogue.args(kKinds[kind], part));
      for (int64_t i = 0; i < m; ++i) {
        const float* expected = all[kind].data() + (part.row + i) * kColumns + part.panel * kPanel;
        CHECK(same_bits(c.data() + i * panels * kPanel, expected, panels * kPanel));
      }
    }
  }
  multiply(table, data, {.m = 0}, epilogue.args(Epilogue::kBias, {}));
  multiply(table, data, {.panels = 0}, epilogue.args(Epilogue::kBias, {}));
}

void check_int8(const KernelTable& table, int64_t k) {
  const Int8Data data(k);
  const EpilogueData epilogue;
  for (Epilogue kind : kKinds) {
    const EpilogueArgs args = epilogue.args(kind, {});
    const std::vector<float> c = multiply(table, data, {}, args);
    CHECK(same_bits(c, multiply(table_for(IsaLevel::kAvx512Vnni), data, {}, args)));
    if (kind == Epilogue::kBias_gelu) continue;  // without fused operations the bits differ
    CHECK(same_bits(c, multiply(table_for(IsaLevel::kScalar), data, {}, args)));
  }
  check_parts(table, data, epilogue);
}

// What the manual says: per tile two chains of fused operations, for even and for odd k.
float tile_chain(const Bf16Data& data, int64_t row, int64_t column) {
  constexpr int kTerm[3][2] = {{1, 0}, {0, 0}, {0, 1}};
  float c = 0;
  for (int64_t step = 0; step < data.k; step += kBf16Depth) {
    for (int t = 0; t < 3; ++t) {
      if (!data.three_terms && t != 1) continue;
      const uint16_t* a = data.a_term[kTerm[t][0]].data() + row * data.k;
      const uint16_t* b = data.b_term[kTerm[t][1]].data() + column;
      float sum[2] = {};
      for (int64_t kk = step; kk < step + kBf16Depth; ++kk) {
        sum[kk % 2] = std::fma(from_bf16(a[kk]), from_bf16(b[kk * kColumns]), sum[kk % 2]);
      }
      c += sum[0] + sum[1];
    }
  }
  return c;
}

// Against double precision: one term on the rounded operands, three on the operands themselves.
void check_accuracy(const Bf16Data& data, const std::vector<float>& c) {
  const double k = static_cast<double>(data.k);
  const double terms = data.three_terms ? 3 : 1;
  // A product takes part in at most 16 roundings of its chain, that of the two chains' sum, and one
  // for each tile that follows.
  double bound = (17 + terms * k / kBf16Depth) * kUnit * 1.01;
  // Both operands lose 2^-16 of themselves and the product of the rests is left out.
  if (data.three_terms) bound += 3 * 0x1p-16 * 1.01;
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kColumns; ++j) {
      double exact = 0;
      double size = 0;
      double a_square = 0;
      double b_square = 0;
      const float* a = data.a.data() + i * data.k;
      const float* b = data.b.data() + j;
      for (int64_t kk = 0; kk < data.k; ++kk) {
        double x = a[kk];
        double y = b[kk * kColumns];
        if (!data.three_terms) {
          x = from_bf16(to_bf16(a[kk]));
          y = from_bf16(to_bf16(b[kk * kColumns]));
        }
        exact += x * y;
        size += std::fabs(x * y);
        a_square += x * x;
        b_square += y * y;
      }
      const double error = std::fabs(c.data()[i * kColumns + j] - exact);
      CHECK(error <= bound * size);
      // Six standard deviations of what splitting random operands costs: 2e-6 from k = 182.
      if (data.three_terms) CHECK(error <= 2.7e-5 / std::sqrt(k) * std::sqrt(a_square * b_square));
    }
  }
}

void check_bf16(const KernelTable& table, int64_t k, bool three_terms) {
  const Bf16Data data(k, three_terms);
  const EpilogueData epilogue;
  const std::vector<float> product = multiply(table, data, {}, epilogue.args(Epilogue::kNone, {}));
  check_accuracy(data, product);
  for (int64_t row : {int64_t{0}, kRows / 2, kRows - 1}) {
    if (&table != &kEmulatedAmxTable) break;  // a CPU may differ where the manual leaves it free
    for (int64_t j = 0; j < kColumns; ++j) {
      CHECK(product.data()[row * kColumns + j] == tile_chain(data, row, j));
    }
  }
  for (Epilogue kind : kKinds) {
    const EpilogueArgs args = epilogue.args(kind, {});
    std::vector<float> expected = product;
    GemmArgs nothing_added = {};
    nothing_added.c = expected.data();
    nothing_added.ldc = kColumns;
    nothing_added.m = kRows;
    nothing_added.panels = kPanels;
    nothing_added.accumulate = true;
    nothing_added.epilogue = args;
    table_for(IsaLevel::kAvx512).gemm(nothing_added);
    CHECK(same_bits(multiply(table, data, {}, args), expected));
  }
  check_parts(table, data, epilogue);
}

void check_rounding(const KernelTable& table, bool with_low) {
  constexpr int64_t kMaxCols = 100;
  constexpr int64_t kCount = 3;
  constexpr uint16_t kUntouched = 0xabcd;
  for (int64_t cols = 1; cols <= kMaxCols; ++cols) {
    const int64_t padded = round_up(cols, kBf16Depth);
    const int64_t ld = padded + kPanel;
    const std::vector<float> src = random_floats(kCount * cols);
    std::vector<uint16_t> high(static_cast<std::size_t>(kCount * ld), kUntouched);
    std::vector<uint16_t> low = high;
    table.round_rows({.src = src.data(),
                      .ld_src = cols,
                      .dst = high.data(),
                      .dst_low = with_low ? low.data() : nullptr,
                      .ld_dst = ld,
                      .rows = kCount,
                      .cols = cols});
    for (int64_t i = 0; i < kCount; ++i) {
      for (int64_t j = 0; j < ld; ++j) {
        const float x = j < cols ? src.data()[i * cols + j] : 0.0f;
        const uint16_t high_of = j < padded ? to_bf16(x) : kUntouched;
        const uint16_t low_of =
            j < padded && with_low ? to_bf16(x - from_bf16(high_of)) : kUntouched;
        CHECK(high.data()[i * ld + j] == high_of);
        CHECK(low.data()[i * ld + j] == low_of);
      }
    }
  }
}

// Ties, values that are not finite, and values too small for a normal bfloat16.
void check_special_values(const KernelTable& table) {
  const float src[] = {0x1.01p0f, 0x1.03p0f, -0x1.01p0f, INFINITY,
                       -INFINITY, NAN,       0x1p-140f,  -0.0f};
  constexpr int kCount = 8;
  uint16_t high[kBf16Depth];
  uint16_t low[kBf16Depth];
  table.round_rows({.src = src,
                    .ld_src = kCount,
                    .dst = high,
                    .dst_low = low,
                    .ld_dst = kBf16Depth,
                    .rows = 1,
                    .cols = kCount});
  const float expected[] = {1.0f, 0x1.04p0f, -1.0f, INFINITY, -INFINITY, NAN, 0.0f, -0.0f};
  for (int i = 0; i < kCount; ++i) {
    const float x = from_bf16(high[i]);
    CHECK(std::isnan(expected[i]) ? std::isnan(x) : bits_of(x) == bits_of(expected[i]));
  }
  CHECK(from_bf16(low[0]) == 0x1p-8f && from_bf16(low[1]) == -0x1p-8f);
}

void check_table(const KernelTable& table) {
  for (int64_t k : {64, 128, 192, 320, 768, 3072}) {
    check_int8(table, k);
    for (bool three_terms : {false, true}) check_bf16(table, k, three_terms);
  }
  for (bool three_terms : {false, true}) check_bf16(table, kBf16Depth, three_terms);
  for (bool with_low : {false, true}) check_rounding(table, with_low);
  check_special_values(table);
}

}  // namespace

int main() {
  bool vnni = false;
  bool tiles = false;
  for (IsaLevel level : tokprune::supported_isa_levels()) {
    vnni |= level == IsaLevel::kAvx512Vnni;
    tiles |= level == IsaLevel::kAmx;
  }
  if (!vnni || !__builtin_cpu_supports("avx512bf16")) {
    std::puts("skipped: emulated tiles need AVX-512 with VNNI and BF16");
    return 0;
  }
  check_table(kEmulatedAmxTable);
  if (tiles) check_table(kAmxTable);
  return 0;
}
