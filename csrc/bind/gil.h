// Lets other Python threads run for a scope.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

namespace tokprune::bind {

// Instead of pybind11's guard: up to Python 3.13, a thread that takes the GIL back while the
// interpreter ends is made to leave by pthread_exit, whose unwinding ends the whole process when it
// reaches a destructor. Such a thread stays here until the process has ended, as it does from 3.14.
class ReleasedGil {
 public:
  ReleasedGil() : thread_(PyEval_SaveThread()) {}
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;
  ~ReleasedGil() {
    try {
      PyEval_RestoreThread(thread_);
    } catch (...) {
      // Only the unwinding comes here, and leaving the handler would let it go on.
      while (true) pause();
    }
  }

 private:
  PyThreadState* thread_;
};

}  // namespace tokprune::bind
