#include "bind/kernels.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/check.h"
#include "bind/convert.h"
#include "kernels/registry.h"

namespace tokprune::bind {
namespace {

using kernels::KernelTable;
using kernels::kPanel;

const KernelTable& table(const std::string& isa) { return kernels::table_for(resolve_isa(isa)); }

int64_t stride(const FloatArray& array) { return array.shape(array.ndim() - 1); }

template <class T>
const T* optional_data(const std::optional<py::array_t<T, py::array::c_style>>& array) {
  return array ? array->data() : nullptr;
}

using HalfArray = py::array_t<uint16_t, py::array::c_style>;
using Int8Array = py::array_t<int8_t, py::array::c_style>;

// The epilogue of a product: {"kind": name, "bias": ..., "residual": ..., ...}.
kernels::EpilogueArgs to_epilogue(const py::dict& dict) {
  static const std::map<std::string, kernels::Epilogue> kPlain = {
      {"none", kernels::Epilogue::kNone},
      {"row_scale", kernels::Epilogue::kRowScale},
      {"bias", kernels::Epilogue::kBias},
      {"bias_residual", kernels::Epilogue::kBiasResidual}};
  const auto kind = dict["kind"].cast<std::string>();
  const auto plain = kPlain.find(kind);
  const auto floats = [&](const char* key) -> const float* {
    return dict.contains(key) ? dict[key].cast<FloatArray>().data() : nullptr;
  };
  kernels::EpilogueArgs epilogue{};
  epilogue.kind = plain != kPlain.end() ? plain->second : kernels::bias_activation(kind);
  epilogue.bias = floats("bias");
  epilogue.residual = floats("residual");
  if (epilogue.residual) epilogue.ld_residual = stride(dict["residual"].cast<FloatArray>());
  if (dict.contains("residual_rows")) {
    epilogue.residual_rows = dict["residual_rows"].cast<IntArray>().data();
  }
  epilogue.row_scale = floats("row_scale");
  return epilogue;
}

// Every wrapper works in place on arrays the test laid out, padding and canaries included.
template <class Weight>
kernels::GemmOf<Weight> float_product(const FloatArray& a,
                                      const py::array_t<Weight, py::array::c_style>& panels,
                                      FloatArray& c, int64_t m, int64_t k, bool accumulate,
                                      const py::dict& epilogue) {
  return {.a = a.data(),
          .lda = stride(a),
          .b = panels.data(),
          .b_panel_stride = panels.size() / std::max<int64_t>(1, panels.shape(0)),
          .c = c.mutable_data(),
          .ldc = stride(c),
          .m = m,
          .panels = panels.shape(0),
          .k = k,
          .accumulate = accumulate,
          .epilogue = to_epilogue(epilogue)};
}

void gemm(const std::string& isa, const FloatArray& a, const FloatArray& panels, FloatArray c,
          int64_t m, int64_t k, bool accumulate, const py::dict& epilogue) {
  table(isa).gemm(float_product<float>(a, panels, c, m, k, accumulate, epilogue));
}

void gemm_bf16_weight(const std::string& isa, const FloatArray& a, const HalfArray& panels,
                      FloatArray c, int64_t m, int64_t k, bool accumulate,
                      const py::dict& epilogue) {
  table(isa).gemm_bf16_weight(float_product<uint16_t>(a, panels, c, m, k, accumulate, epilogue));
}

void gemm_int8(const std::string& isa, const ByteArray& a, const FloatArray& a_scale,
               const IntArray& a_zero, const Int8Array& panels, const FloatArray& b_scale,
               const IntArray& b_sum, FloatArray c, int64_t m, int64_t k,
               const py::dict& epilogue) {
  table(isa).gemm_int8({.a = a.data(),
                        .lda = a.shape(1),
                        .a_scale = a_scale.data(),
                        .a_zero = a_zero.data(),
                        .b = panels.data(),
                        .b_panel_stride = panels.size() / std::max<int64_t>(1, panels.shape(0)),
                        .b_scale = b_scale.data(),
                        .b_sum = b_sum.data(),
                        .c = c.mutable_data(),
                        .ldc = stride(c),
                        .m = m,
                        .panels = panels.shape(0),
                        .k = k,
                        .epilogue = to_epilogue(epilogue)});
}

void gemm_bf16(const std::string& isa, const HalfArray& a, const std::optional<HalfArray>& a_low,
               const HalfArray& panels, const std::optional<HalfArray>& panels_low, FloatArray c,
               int64_t m, int64_t k, const py::dict& epilogue) {
  table(isa).gemm_bf16({.a = a.data(),
                        .a_low = optional_data(a_low),
                        .lda = a.shape(1),
                        .b = panels.data(),
                        .b_low = optional_data(panels_low),
                        .b_panel_stride = panels.size() / std::max<int64_t>(1, panels.shape(0)),
                        .c = c.mutable_data(),
                        .ldc = stride(c),
                        .m = m,
                        .panels = panels.shape(0),
                        .k = k,
                        .epilogue = to_epilogue(epilogue)});
}

void quantize_rows(const std::string& isa, const FloatArray& src, ByteArray dst, FloatArray scale,
                   IntArray zero, int64_t rows, int64_t cols) {
  table(isa).quantize_rows({.src = src.data(),
                            .ld_src = stride(src),
                            .dst = dst.mutable_data(),
                            .ld_dst = dst.shape(1),
                            .scale = scale.mutable_data(),
                            .zero = zero.mutable_data(),
                            .rows = rows,
                            .cols = cols});
}

void quantize_panel(const std::string& isa, const FloatArray& src, Int8Array dst, FloatArray scale,
                    IntArray sum, int64_t k, int64_t n, int64_t depth) {
  table(isa).quantize_panel({.src = src.data(),
                             .ld_src = stride(src),
                             .dst = dst.mutable_data(),
                             .scale = scale.mutable_data(),
                             .sum = sum.mutable_data(),
                             .k = k,
                             .n = n,
                             .depth = depth});
}

void quantize_probabilities(const std::string& isa, const FloatArray& src, ByteArray dst,
                            int64_t rows, int64_t cols) {
  table(isa).quantize_probabilities({.src = src.data(),
                                     .ld_src = stride(src),
                                     .dst = dst.mutable_data(),
                                     .ld_dst = dst.shape(1),
                                     .rows = rows,
                                     .cols = cols});
}

void round_rows(const std::string& isa, const FloatArray& src, HalfArray dst,
                std::optional<HalfArray> dst_low, int64_t rows, int64_t cols) {
  table(isa).round_rows({.src = src.data(),
                         .ld_src = stride(src),
                         .dst = dst.mutable_data(),
                         .dst_low = dst_low ? dst_low->mutable_data() : nullptr,
                         .ld_dst = dst.shape(1),
                         .rows = rows,
                         .cols = cols});
}

void pack_transposed(const std::string& isa, const FloatArray& src, FloatArray dst, int64_t n,
                     int64_t k) {
  table(isa).pack_transposed(
      {.src = src.data(), .ld_src = stride(src), .dst = dst.mutable_data(), .n = n, .k = k});
}

void pack_rows(const std::string& isa, const FloatArray& src, FloatArray dst, int64_t n,
               int64_t k) {
  table(isa).pack_rows(
      {.src = src.data(), .ld_src = stride(src), .dst = dst.mutable_data(), .n = n, .k = k});
}

void pack_transposed_bf16(const std::string& isa, const FloatArray& src, HalfArray dst,
                          std::optional<HalfArray> dst_low, int64_t n, int64_t k) {
  table(isa).pack_transposed_bf16({.src = src.data(),
                                   .ld_src = stride(src),
                                   .dst = dst.mutable_data(),
                                   .dst_low = dst_low ? dst_low->mutable_data() : nullptr,
                                   .n = n,
                                   .k = k});
}

void pack_rows_bf16(const std::string& isa, const FloatArray& src, HalfArray dst,
                    std::optional<HalfArray> dst_low, int64_t n, int64_t k) {
  table(isa).pack_rows_bf16({.src = src.data(),
                             .ld_src = stride(src),
                             .dst = dst.mutable_data(),
                             .dst_low = dst_low ? dst_low->mutable_data() : nullptr,
                             .n = n,
                             .k = k});
}

void softmax(const std::string& isa, FloatArray s, int64_t n, float scale, FloatArray inv_sum) {
  table(isa).softmax({.s = s.mutable_data(),
                      .ld = stride(s),
                      .rows = s.shape(0),
                      .n = n,
                      .scale = scale,
                      .inv_sum = inv_sum.mutable_data()});
}

void relative_bias(const std::string& isa, FloatArray s, int64_t n, float scale,
                   const FloatArray& distances, const IntArray& query_position,
                   const IntArray& key_position) {
  table(isa).relative_bias({.s = s.mutable_data(),
                            .ld = stride(s),
                            .rows = s.shape(0),
                            .n = n,
                            .scale = scale,
                            .table = distances.data() + distances.size() / 2,
                            .query_position = query_position.data(),
                            .key_position = key_position.data()});
}

void key_bias(const std::string& isa, FloatArray s, int64_t n, float scale,
              const FloatArray& bias) {
  table(isa).key_bias({.s = s.mutable_data(),
                       .ld = stride(s),
                       .rows = s.shape(0),
                       .n = n,
                       .scale = scale,
                       .bias = bias.data()});
}

void column_sum(const std::string& isa, const FloatArray& p, int64_t n,
                const FloatArray& row_weight, FloatArray acc) {
  table(isa).column_sum({.p = p.data(),
                         .ld = stride(p),
                         .rows = p.shape(0),
                         .n = n,
                         .row_weight = row_weight.data(),
                         .acc = acc.mutable_data()});
}

void entropy(const std::string& isa, const FloatArray& p, FloatArray t, int64_t n, float scale,
             const FloatArray& inv_sum, const FloatArray& log_sum, FloatArray row_sum) {
  table(isa).entropy({.p = p.data(),
                      .t = t.mutable_data(),
                      .ld = stride(p),
                      .rows = p.shape(0),
                      .n = n,
                      .scale = scale,
                      .inv_sum = inv_sum.data(),
                      .log_sum = log_sum.data(),
                      .row_sum = row_sum.mutable_data()});
}

void layer_norm(const std::string& isa, const FloatArray& src,
                const std::optional<IntArray>& src_rows, FloatArray dst,
                const std::optional<IntArray>& dst_rows, int64_t rows, const FloatArray& gamma,
                const FloatArray& beta, float eps) {
  table(isa).layer_norm({.src = src.data(),
                         .ld_src = stride(src),
                         .src_rows = optional_data(src_rows),
                         .dst = dst.mutable_data(),
                         .ld_dst = stride(dst),
                         .dst_rows = optional_data(dst_rows),
                         .rows = rows,
                         .cols = gamma.size(),
                         .gamma = gamma.data(),
                         .beta = beta.data(),
                         .eps = eps});
}

void embed(const std::string& isa, const FloatArray& word, const IntArray& word_id,
           const FloatArray& position, const IntArray& position_id,
           const std::optional<FloatArray>& type, const std::optional<IntArray>& type_id,
           FloatArray dst) {
  table(isa).embed({.word = word.data(),
                    .word_id = word_id.data(),
                    .position = position.data(),
                    .position_id = position_id.data(),
                    .type = optional_data(type),
                    .type_id = optional_data(type_id),
                    .dst = dst.mutable_data(),
                    .ld_dst = stride(dst),
                    .rows = word_id.size(),
                    .cols = stride(word)});
}

void reduce_rows(const std::string& isa, const FloatArray& src,
                 const std::optional<IntArray>& row_begin, const IntArray& column,
                 const std::optional<FloatArray>& weight, FloatArray dst, int64_t rows,
                 int64_t cols) {
  table(isa).reduce_rows({.src = src.data(),
                          .ld_src = stride(src),
                          .row_begin = optional_data(row_begin),
                          .column = column.data(),
                          .weight = optional_data(weight),
                          .dst = dst.mutable_data(),
                          .ld_dst = stride(dst),
                          .rows = rows,
                          .cols = cols});
}

}  // namespace

void bind_kernels(py::module_& parent) {
  py::module_ m = parent.def_submodule(
      "kernels", "Single kernels of one level, on raw memory, for the kernel tests. No checks.");
  py::list names;
  // One line in the manifest makes a kernel known here, and asks for the wrapper of its name.
#define TOKPRUNE_KERNEL(name, Args) \
  m.def(#name, &name);              \
  names.append(#name);
#define TOKPRUNE_BF16_KERNEL TOKPRUNE_KERNEL
#include "kernels/manifest.inc"
  m.attr("names") = names;
  m.def("has_tiles", [](const std::string& isa) { return table(isa).tiles; });
  m.def("has_bf16", [](const std::string& isa) { return table(isa).gemm_bf16 != nullptr; });
  m.def("gemm_rows", [](const std::string& isa) { return table(isa).gemm_rows; });
}

}  // namespace tokprune::bind
