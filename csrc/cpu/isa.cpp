#include "cpu/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>

#include "base/check.h"

namespace tokprune {
namespace {

constexpr std::array kLevels = {IsaLevel::kScalar, IsaLevel::kAvx2,       IsaLevel::kAvxVnni,
                                IsaLevel::kAvx512, IsaLevel::kAvx512Vnni, IsaLevel::kAvx512Bf16,
                                IsaLevel::kAmx};

struct Leaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf cpuid(uint32_t leaf, uint32_t subleaf) {
  Leaf r;
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
  return r;
}

bool made_by_intel() { return cpuid(0, 0).ecx == 0x6c65746e; }  // "ntel" of "GenuineIntel"

bool bit(uint32_t word, int index) { return (word >> index) & 1u; }

// Register state that the operating system saves on a context switch.
uint64_t enabled_state() {
  if (!bit(cpuid(1, 0).ecx, 27)) return 0;  // OSXSAVE
  uint32_t lo = 0;
  uint32_t hi = 0;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (static_cast<uint64_t>(hi) << 32) | lo;
}

// Linux hands out tile registers, 8 KB per thread, only to processes that ask. The answer holds for
// every thread of the process.
bool permits_tiles() {
#ifdef TOKPRUNE_EMULATE_TILES
  return true;
#else
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#endif
}

bool has_tiles(uint64_t state) {
#ifdef TOKPRUNE_EMULATE_TILES
  static_cast<void>(state);
  return true;
#else
  const Leaf l7 = cpuid(7, 0);
  const bool saved = (state & 0x60000) == 0x60000;
  return saved && bit(l7.edx, 22) && bit(l7.edx, 24) && bit(l7.edx, 25);
#endif
}

bool supported(IsaLevel level) {
  const Leaf l1 = cpuid(1, 0);
  const Leaf l7 = cpuid(7, 0);
  const Leaf l7_1 = l7.eax >= 1 ? cpuid(7, 1) : Leaf{};
  const uint64_t state = enabled_state();
  const bool ymm = (state & 0x6) == 0x6;
  const bool avx2 = ymm && bit(l1.ecx, 28) && bit(l1.ecx, 12) && bit(l1.ecx, 29) && bit(l7.ebx, 5);
  const bool zmm = (state & 0xe6) == 0xe6;
  const bool avx512 =
      avx2 && zmm && bit(l7.ebx, 16) && bit(l7.ebx, 17) && bit(l7.ebx, 30) && bit(l7.ebx, 31);
  const bool vnni = avx512 && bit(l7.ecx, 11);
  const bool bf16 = vnni && bit(l7_1.eax, 5);
  switch (level) {
    case IsaLevel::kScalar: return true;
    case IsaLevel::kAvx2: return avx2;
    case IsaLevel::kAvxVnni: return avx2 && bit(l7_1.eax, 4);
    case IsaLevel::kAvx512: return avx512;
    case IsaLevel::kAvx512Vnni: return vnni;
    case IsaLevel::kAvx512Bf16: return bf16;
    case IsaLevel::kAmx: return bf16 && has_tiles(state) && permits_tiles();
  }
  return false;
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
    case IsaLevel::kAvxVnni: return "avx_vnni";
    case IsaLevel::kAvx512: return "avx512";
    case IsaLevel::kAvx512Vnni: return "avx512_vnni";
    case IsaLevel::kAvx512Bf16: return "avx512_bf16";
    case IsaLevel::kAmx: return "amx";
  }
  return "";
}

const std::vector<IsaLevel>& supported_isa_levels() {
  // Asked once: cpuid traps to the hypervisor of a virtual machine.
  static const std::vector<IsaLevel> levels = [] {
    std::vector<IsaLevel> found;
    for (IsaLevel level : kLevels) {
      if (supported(level)) found.push_back(level);
    }
    // Intel's VDPBF16PS runs at half the rate of float32 multiply-adds: no default there.
    const auto bf16 = std::ranges::find(found, IsaLevel::kAvx512Bf16);
    if (bf16 != found.end() && made_by_intel()) std::iter_swap(bf16 - 1, bf16);
    return found;
  }();
  return levels;
}

IsaLevel resolve_isa(std::string_view request) {
  const char* source = "isa";
  if (request.empty()) {
    source = "TOKPRUNE_ISA";
    if (const char* forced = std::getenv("TOKPRUNE_ISA")) request = forced;
  }
  const std::vector<IsaLevel>& available = supported_isa_levels();
  if (request.empty()) return available.back();
  for (IsaLevel level : kLevels) {
    if (isa_name(level) != request) continue;
    require(std::ranges::find(available, level) != available.end(), source, " '", request,
            "' is not supported by this CPU or operating system; supported here: ",
            list_names(available));
    return level;
  }
  require(false, source, " '", request,
          "' is not an instruction-set level; supported here: ", list_names(available));
  return IsaLevel::kScalar;
}

}  // namespace tokprune
