// From Python dicts and arrays to the structs of the model layer.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>

#include "model/config.h"
#include "model/policy.h"
#include "model/weights.h"

namespace tokprune::bind {

namespace py = pybind11;

using FloatArray = py::array_t<float, py::array::c_style>;
using IntArray = py::array_t<int32_t, py::array::c_style>;
using ByteArray = py::array_t<uint8_t, py::array::c_style>;

// Throw std::invalid_argument naming the key that is missing, misspelt or out of its set.
EncoderConfig to_config(const py::dict& dict);
std::shared_ptr<Plan> to_plan(const py::dict& dict);
// The views share the arrays' memory. Throws TypeError unless all are float32 and C-contiguous.
// With only_shapes, the values are shapes.
TensorMap to_tensors(const py::dict& dict, bool only_shapes);

}  // namespace tokprune::bind
