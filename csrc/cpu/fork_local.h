// A value that belongs to one process. Threads and locked mutexes do not survive fork(), so a child
// process leaks what it inherited and makes its own on first use.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

namespace tokprune {

// How many forks lie between this process and the one that first asked.
uint32_t fork_count();

template <class T>
class ForkLocal {
 public:
  explicit ForkLocal(std::function<std::unique_ptr<T>()> make)
      : make_(std::move(make)), forks_(fork_count()), value_(make_()) {}

  ~ForkLocal() {
    if (inherited()) static_cast<void>(value_.release());
  }

  T& get() {
    if (inherited()) renew();
    return *value_;
  }

 private:
  bool inherited() const { return forks_.load(std::memory_order_acquire) != fork_count(); }

  void renew() {
    static std::mutex* renewing = new std::mutex;
    const std::lock_guard lock(*renewing);
    if (!inherited()) return;
    static_cast<void>(value_.release());
    value_ = make_();
    forks_.store(fork_count(), std::memory_order_release);
  }

  std::function<std::unique_ptr<T>()> make_;
  std::atomic<uint32_t> forks_;
  std::unique_ptr<T> value_;
};

}  // namespace tokprune
