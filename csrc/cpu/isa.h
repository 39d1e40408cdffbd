// Instruction-set levels: what this CPU and operating system offer, and which one to use.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tokprune {

// Profiles, not feature bits. Each level includes the ones before it.
enum class IsaLevel {
  kScalar,  // any x86-64: portable vectors, no FMA; the reference
  kAvx2,    // AVX2 + FMA + F16C
  kAvx512,  // AVX-512 F, BW, DQ, VL
};

std::string_view isa_name(IsaLevel level);

// Levels that both the CPU (cpuid) and the operating system (xgetbv) support, lowest first.
std::vector<IsaLevel> supported_isa_levels();

// Resolves a request: a level's name, or "" for TOKPRUNE_ISA if that is set, else the best level.
// Throws std::invalid_argument for a name that is unknown or unsupported here.
IsaLevel resolve_isa(std::string_view request);

}  // namespace tokprune
