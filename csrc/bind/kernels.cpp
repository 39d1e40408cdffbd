#include "bind/kernels.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

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

// Every wrapper works in place on arrays the test laid out, padding and canaries included.
void gemm(const std::string& isa, const FloatArray& a, const FloatArray& panels, FloatArray c,
          int64_t m, int64_t k, bool accumulate, const std::string& epilogue,
          const std::optional<FloatArray>& bias, const std::optional<FloatArray>& residual,
          const std::optional<IntArray>& residual_rows,
          const std::optional<FloatArray>& row_scale) {
  static const std::map<std::string, kernels::Epilogue> kPlain = {
      {"none", kernels::Epilogue::kNone},
      {"row_scale", kernels::Epilogue::kRowScale},
      {"bias", kernels::Epilogue::kBias},
      {"bias_residual", kernels::Epilogue::kBiasResidual}};
  const auto plain = kPlain.find(epilogue);
  table(isa).gemm(
      {.a = a.data(),
       .lda = stride(a),
       .b = panels.data(),
       .b_panel_stride = panels.shape(1) * kPanel,
       .c = c.mutable_data(),
       .ldc = stride(c),
       .m = m,
       .panels = panels.shape(0),
       .k = k,
       .accumulate = accumulate,
       .epilogue = plain != kPlain.end() ? plain->second : kernels::bias_activation(epilogue),
       .bias = optional_data(bias),
       .residual = optional_data(residual),
       .ld_residual = residual ? stride(*residual) : 0,
       .residual_rows = optional_data(residual_rows),
       .row_scale = optional_data(row_scale)});
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

void column_sum(const std::string& isa, const FloatArray& p, int64_t n,
                const FloatArray& row_weight, FloatArray acc) {
  table(isa).column_sum({.p = p.data(),
                         .ld = stride(p),
                         .rows = p.shape(0),
                         .n = n,
                         .row_weight = row_weight.data(),
                         .acc = acc.mutable_data()});
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
#include "kernels/manifest.inc"
  m.attr("names") = names;
  m.def("gemm_rows", [](const std::string& isa) { return table(isa).gemm_rows; });
}

}  // namespace tokprune::bind
