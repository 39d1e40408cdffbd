// The Python module _core. Converts, validates under the GIL, releases it around the forward pass.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "bind/convert.h"
#include "bind/gil.h"
#include "bind/kernels.h"
#include "cpu/isa.h"
#include "cpu/topology.h"
#include "kernels/registry.h"
#include "model/engine.h"
#include "ops/match.h"

namespace tokprune::bind {
namespace {

// A numpy array that owns the vector's memory.
template <class T>
py::array_t<T> to_numpy(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
  auto* owner = new std::vector<T>(std::move(values));
  const py::capsule release(owner, [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return py::array_t<T>(std::move(shape), owner->data(), release);
}

template <class T>
py::array_t<T> copy_numpy(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// The array's data, after checking that it has one entry for each of `count` things.
template <class Array>
auto data_of(const std::optional<Array>& array, const char* name, int64_t count)
    -> decltype(array->data()) {
  if (!array) return nullptr;
  require(array->ndim() == 1 && array->size() == count, name, " has shape ",
          std::string(py::str(array->attr("shape"))), "; expected (", count, ",)");
  return array->data();
}

template <class T>
py::list trace_list(const std::vector<std::vector<std::vector<T>>>& layers) {
  py::list result;
  for (const auto& layer : layers) {
    if (layer.empty()) {
      result.append(py::none());
      continue;
    }
    py::list sequences;
    for (const auto& values : layer) sequences.append(copy_numpy(values));
    result.append(std::move(sequences));
  }
  return result;
}

py::dict forward(Engine& engine, const IntArray& input_ids, const IntArray& cu_seqlens,
                 const std::optional<IntArray>& token_type_ids,
                 const std::optional<IntArray>& segment_ids,
                 const std::optional<ByteArray>& protect, const std::optional<IntArray>& pool_skip,
                 const std::shared_ptr<Plan>& plan, const std::string& want, bool normalize,
                 bool trace) {
  require(cu_seqlens.ndim() == 1 && cu_seqlens.size() >= 2, "cu_seqlens has ", cu_seqlens.size(),
          " entries; expected one more than there are sequences, at least 2");
  RaggedBatch batch;
  batch.sequences = cu_seqlens.size() - 1;
  batch.cu_seqlens = cu_seqlens.data();
  const int64_t tokens = cu_seqlens.data()[batch.sequences];
  batch.input_ids = data_of(std::optional(input_ids), "input_ids", tokens);
  batch.token_type_ids = data_of(token_type_ids, "token_type_ids", tokens);
  batch.segment_ids = data_of(segment_ids, "segment_ids", tokens);
  batch.protect = data_of(protect, "protect", tokens);
  batch.pool_skip = data_of(pool_skip, "pool_skip", batch.sequences);

  ForwardOptions options;
  options.plan = plan.get();
  options.normalize = normalize;
  if (want == "pooled") {
    options.want = Want::kPooled;
  } else if (want == "logits") {
    options.want = Want::kLogits;
  } else {
    require(want == "hidden", "want is '", want, "'; expected hidden, pooled or logits");
  }

  EngineOutput out;
  {
    const ReleasedGil released;
    out = engine.forward(batch, options, trace);
  }
  const EncoderConfig& config = engine.encoder().config();
  py::dict result;
  const py::ssize_t rows = out.cu_kept.back();
  result["hidden"] = options.want == Want::kHidden
                         ? py::object(to_numpy(std::move(out.hidden), {rows, config.hidden}))
                         : py::none();
  result["positions"] = to_numpy(std::move(out.positions), {rows});
  const auto offsets = static_cast<py::ssize_t>(out.cu_kept.size());
  result["cu_kept"] = to_numpy(std::move(out.cu_kept), {offsets});
  result["pooled"] =
      out.pooled_columns > 0
          ? py::object(to_numpy(std::move(out.pooled), {batch.sequences, out.pooled_columns}))
          : py::none();
  result["logits"] = py::none();
  if (out.logit_columns > 0) {
    const auto count = static_cast<py::ssize_t>(out.logits.size()) / out.logit_columns;
    result["logits"] = to_numpy(std::move(out.logits), {count, out.logit_columns});
  }
  result["kept"] = to_numpy(std::move(out.kept), {config.layers, batch.sequences});
  result["macs"] = out.macs;
  result["trace_kept"] = trace ? py::object(trace_list(out.trace.kept)) : py::none();
  result["trace_scores"] = trace ? py::object(trace_list(out.trace.scores)) : py::none();
  result["trace_rows"] = trace ? py::object(trace_list(out.trace.rows)) : py::none();
  return result;
}

const char* precision_name(Precision precision) {
  switch (precision) {
    case Precision::kFp32: return "fp32";
    case Precision::kBf16: return "bf16";
    case Precision::kInt8: return "int8";
    case Precision::kBf16x3: break;
  }
  return "bf16x3";
}

py::list isa_levels() {
  py::list names;
  for (IsaLevel level : supported_isa_levels()) names.append(std::string(isa_name(level)));
  return names;
}

py::dict activations() {
  py::dict result;
  for (const kernels::Activation& activation : kernels::activations()) {
    const std::string hf_names(activation.hf_names);
    result[py::str(std::string(activation.name))] = py::str(hf_names).attr("split")();
  }
  return result;
}

IntArray join_rows(const FloatArray& similarity, int64_t least, int64_t most, float above) {
  require(similarity.ndim() == 2 && similarity.shape(0) == similarity.shape(1),
          "similarity: expected a square matrix");
  const int64_t count = similarity.shape(0);
  const auto size = static_cast<std::size_t>(count);
  std::vector<float> similarities(size);
  std::vector<float> best(size);
  std::vector<int32_t> partner(size);
  std::vector<uint8_t> role(size);
  IntArray host(count);
  join_pairs({.similarity = similarity.data(), .ld = count, .count = count},
             {.least = least, .most = most, .above = above},
             {.host = host.mutable_data(),
              .similarity = similarities.data(),
              .best = best.data(),
              .partner = partner.data(),
              .role = role.data()});
  return host;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ engine of tokprune_rt.";
  m.def("isa_levels", &isa_levels, "Supported instruction-set levels, lowest first.");
  m.def("default_threads", &default_thread_count,
        "min(physical cores, affinity, cgroup quota) of this process.");
  m.def(
      "resolve_precision",
      [](const std::string& precision, const std::string& isa) {
        return precision_name(resolve_precision(precision, resolve_isa(isa)));
      },
      py::arg("precision"), py::arg("isa") = "", "What runs for a request on a level.");
  m.def("activations", &activations, "Activation functions and their Hugging Face names.");
  m.def("join_rows", &join_rows, py::arg("similarity").noconvert(), py::arg("least"),
        py::arg("most"), py::arg("above"),
        "The row that each row joins, or -1, by the selector all_pairs.");

  py::class_<Plan, std::shared_ptr<Plan>>(m, "Plan", "A compiled pruning policy.")
      .def(py::init(&to_plan), py::arg("plan"));

  py::class_<Engine>(m, "Encoder", "Packed weights, threads and kernels of one model.")
      .def(py::init([](const py::dict& config, const py::dict& tensors, int threads,
                       const std::string& isa, const std::string& precision,
                       const std::optional<ByteArray>& packed) {
             EncoderConfig parsed = to_config(config);
             const TensorMap views = to_tensors(tensors, packed.has_value());
             std::optional<std::span<const std::byte>> memory;
             if (packed) {
               memory = std::as_bytes(std::span(packed->data(), packed->size()));
             }
             const ReleasedGil released;
             return std::make_unique<Engine>(std::move(parsed), views, threads, isa, precision,
                                             memory);
           }),
           py::arg("config"), py::arg("tensors"), py::arg("threads") = 0, py::arg("isa") = "",
           py::arg("precision") = "auto", py::arg("packed").noconvert() = py::none(),
           py::keep_alive<1, 7>())
      .def_property_readonly("isa", [](const Engine& e) { return std::string(isa_name(e.isa())); })
      .def_property_readonly("threads", &Engine::threads)
      .def_property_readonly("weight_bytes",
                             [](const Engine& e) { return e.encoder().weights().memory().size(); })
      .def_property_readonly(
          "precision", [](const Engine& e) { return precision_name(e.encoder().precision()); })
      .def_property_readonly(
          "packed",
          [](const py::object& self) {
            const auto memory = self.cast<const Engine&>().encoder().weights().memory();
            const auto* bytes = reinterpret_cast<const uint8_t*>(memory.data());
            py::array_t<uint8_t> view(static_cast<py::ssize_t>(memory.size()), bytes, self);
            view.attr("setflags")(py::arg("write") = false);
            return view;
          })
      .def("forward", &forward, py::arg("input_ids").noconvert(), py::arg("cu_seqlens").noconvert(),
           py::kw_only(), py::arg("token_type_ids").noconvert() = py::none(),
           py::arg("segment_ids").noconvert() = py::none(),
           py::arg("protect").noconvert() = py::none(),
           py::arg("pool_skip").noconvert() = py::none(), py::arg("plan") = py::none(),
           py::arg("want") = "hidden", py::arg("normalize") = false, py::arg("trace") = false);

  bind_kernels(m);
}

}  // namespace tokprune::bind
