// What every op needs to run: which kernels, on which threads.
#pragma once

#include "cpu/thread_pool.h"
#include "kernels/abi.h"

namespace tokprune {

struct Context {
  const kernels::KernelTable* kernels = nullptr;
  ThreadPool* pool = nullptr;
};

}  // namespace tokprune
