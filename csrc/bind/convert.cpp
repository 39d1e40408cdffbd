#include "bind/convert.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>
#include <utility>

#include "base/check.h"
#include "bind/reader.h"

namespace tokprune::bind {
namespace {

Pooling to_pooling(const std::string& name) {
  static const std::initializer_list<std::pair<const char*, Pooling>> kModes = {
      {"cls", Pooling::kCls},
      {"max", Pooling::kMax},
      {"mean", Pooling::kMean},
      {"mean_sqrt_len", Pooling::kMeanSqrtLen},
      {"weightedmean", Pooling::kWeightedMean},
      {"lasttoken", Pooling::kLastToken}};
  for (const auto& [text, mode] : kModes) {
    if (name == text) return mode;
  }
  require(false, "pooling '", name, "' is unknown");
  return {};
}

}  // namespace

EncoderConfig to_config(const py::dict& dict) {
  Reader in(dict, "config");
  EncoderConfig config;
  config.layers = in.get<int64_t>("layers");
  config.hidden = in.get<int64_t>("hidden");
  config.heads = in.get<int64_t>("heads");
  config.intermediate = in.get<int64_t>("intermediate");
  config.embedding_size = in.get<int64_t>("embedding_size");
  config.vocab_size = in.get<int64_t>("vocab_size");
  config.max_positions = in.get<int64_t>("max_positions");
  config.position_offset = in.get<int64_t>("position_offset");
  config.position_pad_id = in.get<int64_t>("position_pad_id");
  config.type_vocab_size = in.get<int64_t>("type_vocab_size");
  config.activation = in.get<std::string>("activation");
  config.layer_norm_eps = in.get<float>("layer_norm_eps");
  config.relative_attention = in.get<bool>("relative_attention");
  for (const py::handle mode : in.get<py::list>("pooling")) {
    config.pooling.push_back(to_pooling(py::str(mode)));
  }
  for (const py::handle name : in.get<py::list>("dense_activations")) {
    config.dense_activations.push_back(py::str(name));
  }
  config.head = in.choice<HeadKind>(
      "head",
      {{"none", HeadKind::kNone}, {"first", HeadKind::kFirst}, {"token", HeadKind::kToken}});
  config.head_activation = in.get<std::string>("head_activation");
  in.finish();
  return config;
}

TensorMap to_tensors(const py::dict& dict, bool only_shapes) {
  TensorMap tensors;
  for (const auto& [key, value] : dict) {
    const std::string name = py::str(key);
    if (only_shapes) {
      if (!py::isinstance<py::tuple>(value) && !py::isinstance<py::list>(value)) {
        throw py::type_error(concat("the shape of tensor '", name, "' is not a tuple or list"));
      }
      TensorView view;
      for (const py::handle extent : py::reinterpret_borrow<py::sequence>(value)) {
        if (!py::isinstance<py::int_>(extent)) {
          throw py::type_error(
              concat("the shape of tensor '", name, "' holds a value that is no int"));
        }
        view.shape.push_back(extent.cast<int64_t>());
      }
      tensors.emplace(name, std::move(view));
      continue;
    }
    if (!py::isinstance<FloatArray>(value)) {
      throw py::type_error(concat("tensor '", name, "' is not a C-contiguous float32 array"));
    }
    const auto array = py::reinterpret_borrow<FloatArray>(value);
    TensorView view{.data = array.data(), .shape = {}};
    for (py::ssize_t i = 0; i < array.ndim(); ++i) view.shape.push_back(array.shape(i));
    tensors.emplace(name, std::move(view));
  }
  return tensors;
}

}  // namespace tokprune::bind
