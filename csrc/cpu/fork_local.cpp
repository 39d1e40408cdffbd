#include "cpu/fork_local.h"

#include <pthread.h>

namespace tokprune {
namespace {

std::atomic<uint32_t> g_forks{0};

}  // namespace

uint32_t fork_count() {
  static const bool watching = [] {
    pthread_atfork(nullptr, nullptr, [] { g_forks.fetch_add(1, std::memory_order_relaxed); });
    return true;
  }();
  static_cast<void>(watching);
  return g_forks.load(std::memory_order_relaxed);
}

}  // namespace tokprune
