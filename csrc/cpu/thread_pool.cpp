#include "cpu/thread_pool.h"

#include <memory>
#include <thread>
#include <vector>

namespace tokprune {
namespace {

inline void cpu_pause() { __builtin_ia32_pause(); }

// Spins briefly, since the next parallel section usually starts within microseconds, then sleeps.
template <class T>
T wait_while_equal(const std::atomic<T>& value, T old) {
  constexpr int kSpins = 4000;
  for (int i = 0; i < kSpins; ++i) {
    const T now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    cpu_pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

struct ThreadPool::Team {
  explicit Team(int threads) : starting(threads - 1), claimed(static_cast<std::size_t>(threads)) {
    workers.reserve(static_cast<std::size_t>(threads - 1));
    try {
      for (int part = 1; part < threads; ++part) {
        workers.emplace_back([this, part] { serve(part); });
      }
    } catch (...) {
      // The system has no more threads to give; those that did start must not outlive the Team.
      end();
      throw;
    }
    // A thread that starts later would allocate its own state in the middle of somebody's run.
    int missing = threads - 1;
    while (missing != 0) missing = wait_while_equal(starting, missing);
  }

  ~Team() { end(); }

  void end() {
    stop.store(true, std::memory_order_relaxed);
    epoch.fetch_add(1, std::memory_order_release);
    epoch.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  void serve(int part) {
    if (starting.fetch_sub(1, std::memory_order_acq_rel) == 1) starting.notify_one();
    uint32_t seen = 0;
    while (true) {
      uint32_t now = epoch.load(std::memory_order_acquire);
      while (now == seen) now = wait_while_equal(epoch, seen);
      seen = now;
      if (stop.load(std::memory_order_relaxed)) return;
      if (!claim(part, now)) continue;
      body(context, part);
      if (pending.fetch_sub(1, std::memory_order_acq_rel) == 1) pending.notify_one();
    }
  }

  // Whether the caller of claim() is the one to run `part` in this epoch. Every part is claimed
  // once in every epoch, so a worker that comes too late finds its part taken and the run
  // untouched.
  bool claim(int part, uint32_t now) {
    uint32_t before = now - 1;
    return claimed[static_cast<std::size_t>(part)].value.compare_exchange_strong(
        before, now, std::memory_order_acq_rel);
  }

  void run(Erased new_body, void* new_context) {
    body = new_body;
    context = new_context;
    pending.store(static_cast<int>(workers.size()), std::memory_order_relaxed);
    const uint32_t now = epoch.fetch_add(1, std::memory_order_release) + 1;
    epoch.notify_all();
    new_body(new_context, 0);
    // Nobody waits for a worker that the system has not woken yet.
    for (int part = 1; part <= static_cast<int>(workers.size()); ++part) {
      if (!claim(part, now)) continue;
      new_body(new_context, part);
      pending.fetch_sub(1, std::memory_order_acq_rel);
    }
    int left = pending.load(std::memory_order_acquire);
    while (left != 0) left = wait_while_equal(pending, left);
  }

  struct alignas(64) Epoch {
    std::atomic<uint32_t> value{0};
  };

  std::atomic<uint32_t> epoch{0};
  std::atomic<int> starting;  // workers that are not running yet
  std::atomic<int> pending{0};
  std::atomic<bool> stop{false};
  std::atomic<bool> busy{false};
  Erased body = nullptr;
  void* context = nullptr;
  std::vector<Epoch> claimed;  // [parts] the last epoch in which a part was taken
  std::vector<std::thread> workers;
};

ThreadPool::ThreadPool(int threads)
    : threads_(threads < 1 ? 1 : threads),
      team_([count = threads_] { return std::make_unique<Team>(count); }) {}

ThreadPool::~ThreadPool() = default;

void ThreadPool::run_erased(Erased body, void* context) {
  if (threads_ == 1) return body(context, 0);
  Team& team = team_.get();
  if (team.busy.exchange(true, std::memory_order_acquire)) {
    for (int part = 0; part < threads_; ++part) body(context, part);
    return;
  }
  team.run(body, context);
  team.busy.store(false, std::memory_order_release);
}

}  // namespace tokprune
