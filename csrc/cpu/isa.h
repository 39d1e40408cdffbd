// Instruction-set levels: what this CPU and operating system offer, and which one to use.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tokprune {

// Profiles, not feature bits.
enum class IsaLevel {
  kScalar,      // any x86-64: portable vectors, no FMA; the reference
  kAvx2,        // AVX2 + FMA + F16C
  kAvxVnni,     // ... + AVX-VNNI: client CPUs without AVX-512
  kAvx512,      // AVX2 level + AVX-512 F, BW, DQ, VL
  kAvx512Vnni,  // ... + AVX-512 VNNI
  kAvx512Bf16,  // ... + AVX-512 BF16
  kAmx,         // ... + AMX-TILE, AMX-BF16, AMX-INT8
};

std::string_view isa_name(IsaLevel level);

// Levels that both the CPU (cpuid) and the operating system support (saved registers, and for AMX
// the permission to use tiles, which is asked for here), in ascending order of preference: the last
// one is the default.
const std::vector<IsaLevel>& supported_isa_levels();

// Resolves a request: a level's name, or "" for TOKPRUNE_ISA if that is set, else the best level.
// Throws std::invalid_argument for a name that is unknown or unsupported here.
IsaLevel resolve_isa(std::string_view request);

}  // namespace tokprune
