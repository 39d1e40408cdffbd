#include "cpu/topology.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <set>
#include <string>

namespace tokprune {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

int physical_cores_in_affinity() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof(mask), &mask) != 0) return 1;
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    const std::string topology =
        "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list";
    const std::string siblings = first_line(topology);
    cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
  }
  return std::max<int>(1, static_cast<int>(cores.size()));
}

// CPUs granted by the quota of one cgroup folder (v2 or v1 files), or infinity.
double quota_of(const std::string& folder) {
  constexpr double kUnlimited = std::numeric_limits<double>::infinity();
  double quota = -1;
  double period = -1;
  std::ifstream v2(folder + "/cpu.max");
  if (v2 >> quota >> period) return period > 0 ? quota / period : kUnlimited;
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us");
  std::ifstream period_file(folder + "/cpu.cfs_period_us");
  if (quota_file >> quota && period_file >> period && quota > 0 && period > 0) {
    return quota / period;
  }
  return kUnlimited;
}

// The tightest quota on the way from this process's cgroup up to the root.
double cgroup_cpus() {
  double cpus = std::min(quota_of("/sys/fs/cgroup"), quota_of("/sys/fs/cgroup/cpu"));
  std::ifstream membership("/proc/self/cgroup");
  for (std::string line; std::getline(membership, line);) {
    const auto path_at = line.rfind(':');
    if (path_at == std::string::npos) continue;
    const bool v2 = line.rfind("0::", 0) == 0;
    std::string path = line.substr(path_at + 1);
    while (path.size() > 1) {
      cpus = std::min(cpus, quota_of((v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu") + path));
      path.resize(path.rfind('/'));
    }
  }
  return cpus;
}

}  // namespace

int default_thread_count() {
  const int cores = physical_cores_in_affinity();
  const double quota = cgroup_cpus();
  return quota >= cores ? cores : std::max(1, static_cast<int>(quota));
}

}  // namespace tokprune
