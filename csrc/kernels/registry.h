// Chooses the kernel table of an instruction-set level, and names the activation functions.
#pragma once

#include <string_view>
#include <vector>

#include "cpu/isa.h"
#include "kernels/abi.h"

namespace tokprune::kernels {

// The table of `level`, with entries a level leaves null taken from the level it builds on.
const KernelTable& table_for(IsaLevel level);

struct Activation {
  std::string_view name;
  std::string_view hf_names;  // separated by spaces
  Epilogue epilogue;
};

const std::vector<Activation>& activations();

// Throws std::invalid_argument, listing the known names, if there is no such activation.
Epilogue bias_activation(std::string_view name);

}  // namespace tokprune::kernels
