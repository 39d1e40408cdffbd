// A small fork-join pool. Not OpenMP: torch ships its own libgomp, and two such runtimes in one
// process slow each other down.
#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "cpu/fork_local.h"

namespace tokprune {

class ThreadPool {
 public:
  // `threads` counts the calling thread; 1 means no worker is ever started.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return threads_; }

  // Calls body(part) once for every part in [0, size()) and returns when all are done. Part i runs
  // on the same worker each time, so that its slice of the weights stays in that core's cache,
  // unless that worker is not there yet when the caller has finished its own part: then the caller
  // runs it. A caller that finds the pool in use by another thread runs every part itself: results
  // do not depend on who runs a part. `body` must not throw and must not call run() again.
  template <class Body>
  void run(Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_erased([](void* context, int part) { (*static_cast<Plain*>(context))(part); }, &body);
  }

  // Calls body(task, part) for every task in [0, tasks); parts take the next free task.
  template <class Body>
  void for_each(int64_t tasks, Body&& body) {
    if (threads_ == 1 || tasks <= 1) {
      for (int64_t task = 0; task < tasks; ++task) body(task, 0);
      return;
    }
    std::atomic<int64_t> next{0};
    run([&](int part) {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
        body(task, part);
      }
    });
  }

 private:
  struct Team;
  using Erased = void (*)(void* context, int part);
  void run_erased(Erased body, void* context);

  int threads_;
  ForkLocal<Team> team_;
};

}  // namespace tokprune
