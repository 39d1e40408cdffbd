// Single kernels for the kernel tests: not part of the public API.
#pragma once

#include <pybind11/pybind11.h>

namespace tokprune::bind {

void bind_kernels(pybind11::module_& m);

}  // namespace tokprune::bind
