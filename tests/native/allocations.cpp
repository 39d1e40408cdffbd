// Encoder::forward in a reserved workspace asks the allocator for nothing, on any thread.
#include <atomic>
#include <cstdio>
#include <new>
#include <string>
#include <thread>

#include "check.h"
#include "cpu/isa.h"
#include "kernels/registry.h"
#include "model/encoder.h"
#include "random_model.h"

namespace {

std::atomic<bool> g_counting{false};
std::atomic<int64_t> g_allocations{0};

void count_allocation() {
  if (g_counting.load(std::memory_order_relaxed)) {
    g_allocations.fetch_add(1, std::memory_order_relaxed);
  }
}

}  // namespace

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// The sanitizer owns malloc and offers a hook instead.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void*,
                                                                             std::size_t),
                                                         void (*free_hook)(const volatile void*));

namespace {

void watch_allocator() {
  __sanitizer_install_malloc_and_free_hooks(
      [](const volatile void*, std::size_t) { count_allocation(); }, [](const volatile void*) {});
}

}  // namespace
#else
// Definitions in the program come before the C library's, also for operator new inside libstdc++.
#pragma GCC visibility push(default)
extern "C" {
// NOLINTBEGIN(bugprone-reserved-identifier): the C library's own names.
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
// NOLINTEND(bugprone-reserved-identifier)

void* malloc(std::size_t size) {
  count_allocation();
  return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) {
  count_allocation();
  return __libc_calloc(count, size);
}
void* realloc(void* old, std::size_t size) {
  count_allocation();
  return __libc_realloc(old, size);
}
void* memalign(std::size_t align, std::size_t size) {
  count_allocation();
  return __libc_memalign(align, size);
}
void* aligned_alloc(std::size_t align, std::size_t size) { return memalign(align, size); }
int posix_memalign(void** result, std::size_t align, std::size_t size) {
  *result = memalign(align, size);
  return *result ? 0 : 12;  // ENOMEM
}
}
#pragma GCC visibility pop

namespace {
void watch_allocator() {}
}  // namespace
#endif

namespace tokprune::testing {
namespace {

template <class Body>
int64_t allocations_of(const Body& body) {
  g_allocations = 0;
  g_counting = true;
  body();
  g_counting = false;
  return g_allocations;
}

void check_level(IsaLevel level, int threads, const NamedPrecision& arithmetic) {
  const std::unique_ptr<RandomModel> model = random_model();
  ThreadPool pool(threads);
  const Context context{&kernels::table_for(level), &pool};
  const Encoder encoder(model->config, context, model->tensors, arithmetic.precision, {});
  const RandomBatch data(model->config, {80, 1, 33, 17, 64, 2, 48}, 7);
  const RaggedBatch batch = data.view();
  for (const NamedPlan& named : pruning_plans(model->config)) {
    for (Want want : {Want::kHidden, Want::kPooled, Want::kLogits}) {
      ForwardOptions options;
      options.plan = named.plan.get();
      options.want = want;
      Workspace workspace;
      const int64_t reserved = allocations_of(
          [&] { encoder.reserve(workspace, encoder.workspace_plan(batch, options, pool.size())); });
      CHECK(reserved > 0);
      for (int call = 0; call < 2; ++call) {
        const int64_t count =
            allocations_of([&] { encoder.forward(context, workspace, batch, options); });
        if (count == 0) continue;
        std::fprintf(stderr, "%s, %s, %s, %d threads, call %d: %lld allocations\n",
                     std::string(isa_name(level)).c_str(), arithmetic.name, named.name.c_str(),
                     threads, call, static_cast<long long>(count));
        CHECK(count == 0);
      }
      const int64_t again = allocations_of(
          [&] { encoder.reserve(workspace, encoder.workspace_plan(batch, options, pool.size())); });
      CHECK(again == 0);
    }
  }
}

}  // namespace
}  // namespace tokprune::testing

int main() {
  using tokprune::testing::allocations_of;
  using tokprune::testing::precisions_of;
  watch_allocator();
  CHECK(allocations_of([] { ::operator delete(::operator new(64)); }) == 1);
  CHECK(allocations_of([] { std::thread([] { ::operator delete(::operator new(64)); }).join(); }) >
        1);
  for (tokprune::IsaLevel level : tokprune::supported_isa_levels()) {
    for (const auto& arithmetic : precisions_of(tokprune::kernels::table_for(level))) {
      for (int threads : {1, 3}) tokprune::testing::check_level(level, threads, arithmetic);
    }
  }
  std::puts("no allocation in forward");
  return 0;
}
