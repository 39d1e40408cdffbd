// The fork-join pool under stress: every size, several callers at once, and fork in the middle.
#include "cpu/thread_pool.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <system_error>
#include <thread>
#include <vector>

#include "check.h"

#if defined(__SANITIZE_THREAD__)
// By default ThreadSanitizer ends a child process that starts threads of its own, and takes the
// parent's threads, which a child cannot join, for leaks.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options() {
  return "die_after_fork=0:report_thread_leaks=0";
}
#endif

namespace {

using tokprune::ThreadPool;

// Every part runs exactly once, and its writes are visible to the caller without any atomics.
void check_parts(ThreadPool& pool, int round) {
  std::vector<int> seen(static_cast<std::size_t>(pool.size()), 0);
  pool.run([&](int part) { seen[static_cast<std::size_t>(part)] += round; });
  for (int value : seen) CHECK(value == round);
}

// Every task runs exactly once, on a part that exists.
void check_tasks(ThreadPool& pool, int64_t tasks) {
  std::vector<int64_t> result(static_cast<std::size_t>(tasks), -1);
  std::vector<int64_t> done(static_cast<std::size_t>(pool.size()), 0);
  pool.for_each(tasks, [&](int64_t task, int part) {
    CHECK(part >= 0 && part < pool.size());
    result[static_cast<std::size_t>(task)] = task * task;
    ++done[static_cast<std::size_t>(part)];
  });
  int64_t total = 0;
  for (int64_t count : done) total += count;
  CHECK(total == tasks);
  for (int64_t task = 0; task < tasks; ++task) {
    CHECK(result[static_cast<std::size_t>(task)] == task * task);
  }
}

void check_pool(ThreadPool& pool, int rounds) {
  for (int round = 1; round <= rounds; ++round) {
    check_parts(pool, round);
    check_tasks(pool, round % 40);
  }
}

// A child process must be able to use a pool that it inherited, whatever its parent was doing.
void check_fork(ThreadPool& pool) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    alarm(60);  // a child that hangs is a failure
    check_pool(pool, 20);
    const pid_t grandchild = fork();
    if (grandchild == 0) {
      alarm(60);
      check_pool(pool, 20);
      _exit(0);
    }
    int status = 0;
    CHECK(waitpid(grandchild, &status, 0) == grandchild);
    _exit(WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  check_pool(pool, 20);
}

// A caller whose workers get no core runs their parts itself instead of waiting for them.
void check_late_workers() {
  cpu_set_t before;
  CHECK(sched_getaffinity(0, sizeof before, &before) == 0);
  int core = 0;
  while (!CPU_ISSET(core, &before)) ++core;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
  ThreadPool pool(4);  // its workers inherit the one core
  const std::thread::id caller = std::this_thread::get_id();
  int taken = 0;
  for (int round = 0; round < 200; ++round) {
    pool.run([&](int part) {
      if (part != 0 && std::this_thread::get_id() == caller) ++taken;
    });
  }
  CHECK(taken > 0);
  CHECK(sched_setaffinity(0, sizeof before, &before) == 0);
}

void check_callers(int threads) {
  ThreadPool pool(threads);
  std::vector<std::thread> callers;
  callers.reserve(4);
  for (int i = 0; i < 4; ++i) callers.emplace_back([&] { check_pool(pool, 200); });
  for (int i = 0; i < 3; ++i) check_fork(pool);
  for (std::thread& caller : callers) caller.join();
}

#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
// Without room for more thread stacks the constructor throws, and leaves nothing behind.
void check_exhaustion() {
  rlimit before{};
  CHECK(getrlimit(RLIMIT_AS, &before) == 0);
  rlimit tight = before;
  tight.rlim_cur = rlim_t{1} << 30;
  CHECK(setrlimit(RLIMIT_AS, &tight) == 0);
  bool thrown = false;
  try {
    const ThreadPool pool(4000);
  } catch (const std::system_error&) {
    thrown = true;
  }
  CHECK(thrown);
  CHECK(setrlimit(RLIMIT_AS, &before) == 0);
}
#else
void check_exhaustion() {}  // the sanitizers' own memory does not fit into such a limit
#endif

}  // namespace

int main() {
  check_exhaustion();
  for (int threads : {0, 1, 2, 3, 4, 7, 16}) {
    for (int i = 0; i < 20; ++i) {
      ThreadPool unused(threads);
      CHECK(unused.size() == (threads < 1 ? 1 : threads));
      ThreadPool pool(threads);
      check_pool(pool, 10);
    }
  }
  check_late_workers();
  for (int threads : {1, 2, 4}) check_callers(threads);
  std::puts("thread pool ok");
  return 0;
}
