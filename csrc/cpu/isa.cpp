#include "cpu/isa.h"

#include <cpuid.h>

#include <array>
#include <cstdint>
#include <cstdlib>

#include "base/check.h"

namespace tokprune {
namespace {

constexpr std::array kLevels = {IsaLevel::kScalar, IsaLevel::kAvx2, IsaLevel::kAvx512};

struct Leaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf cpuid(uint32_t leaf, uint32_t subleaf) {
  Leaf r;
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
  return r;
}

bool bit(uint32_t word, int index) { return (word >> index) & 1u; }

// Register state that the operating system saves on a context switch.
uint64_t enabled_state() {
  if (!bit(cpuid(1, 0).ecx, 27)) return 0;  // OSXSAVE
  uint32_t lo = 0;
  uint32_t hi = 0;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (static_cast<uint64_t>(hi) << 32) | lo;
}

bool supported(IsaLevel level) {
  if (level == IsaLevel::kScalar) return true;
  const Leaf l1 = cpuid(1, 0);
  const Leaf l7 = cpuid(7, 0);
  const uint64_t state = enabled_state();
  const bool ymm = (state & 0x6) == 0x6;
  const bool avx2 = ymm && bit(l1.ecx, 28) && bit(l1.ecx, 12) && bit(l1.ecx, 29) && bit(l7.ebx, 5);
  if (level == IsaLevel::kAvx2) return avx2;
  const bool zmm = (state & 0xe6) == 0xe6;
  return avx2 && zmm && bit(l7.ebx, 16) && bit(l7.ebx, 17) && bit(l7.ebx, 30) && bit(l7.ebx, 31);
}

std::string list_names(const std::vector<IsaLevel>& levels) {
  std::string names;
  for (IsaLevel level : levels) {
    if (!names.empty()) names += ", ";
    names += isa_name(level);
  }
  return names;
}

}  // namespace

std::string_view isa_name(IsaLevel level) {
  switch (level) {
    case IsaLevel::kScalar: return "scalar";
    case IsaLevel::kAvx2: return "avx2";
    case IsaLevel::kAvx512: return "avx512";
  }
  return "";
}

std::vector<IsaLevel> supported_isa_levels() {
  std::vector<IsaLevel> levels;
  for (IsaLevel level : kLevels) {
    if (supported(level)) levels.push_back(level);
  }
  return levels;
}

IsaLevel resolve_isa(std::string_view request) {
  const char* source = "isa";
  if (request.empty()) {
    source = "TOKPRUNE_ISA";
    if (const char* forced = std::getenv("TOKPRUNE_ISA")) request = forced;
  }
  const std::vector<IsaLevel> available = supported_isa_levels();
  if (request.empty()) return available.back();
  for (IsaLevel level : kLevels) {
    if (isa_name(level) != request) continue;
    require(supported(level), source, " '", request,
            "' is not supported by this CPU or operating system; supported here: ",
            list_names(available));
    return level;
  }
  require(false, source, " '", request,
          "' is not an instruction-set level; supported here: ", list_names(available));
  return IsaLevel::kScalar;
}

}  // namespace tokprune
