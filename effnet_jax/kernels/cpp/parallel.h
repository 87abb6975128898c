// Work shared by the threads that XLA has, and memory that a thread keeps.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "xla/ffi/api/ffi.h"

class Threads {
 public:
  explicit Threads(xla::ffi::ThreadPool* pool)
      : pool_(pool), count_(pool ? std::max<long>(1, pool->num_threads()) : 1) {}
  static Threads None() { return Threads(nullptr); }

  int count() const { return count_; }

  // Calls work(0) … work(items - 1), each once, in any order. The caller works too, so that nothing waits for a thread
  // that is not free.
  template <typename Work>
  void Run(int items, const Work& work) const {
    int helpers = std::min(count_, items) - 1;
    if (helpers <= 0) {
      for (int item = 0; item < items; ++item) work(item);
      return;
    }
    struct Shared {
      std::atomic<int> next{0};
      int done = 0;
      std::mutex mutex;
      std::condition_variable ended;
    };
    auto shared = std::make_shared<Shared>();
    auto drain = [shared, items, &work] {
      int own = 0;
      for (int item; (item = shared->next.fetch_add(1)) < items; ++own) work(item);
      if (own == 0) return;
      std::lock_guard<std::mutex> lock(shared->mutex);
      if ((shared->done += own) == items) shared->ended.notify_all();
    };
    for (int helper = 0; helper < helpers; ++helper) {
      auto task = drain;
      pool_->Schedule(std::move(task));
    }
    drain();
    std::unique_lock<std::mutex> lock(shared->mutex);
    shared->ended.wait(lock, [&] { return shared->done == items; });
  }

 private:
  xla::ffi::ThreadPool* pool_;
  int count_;
};

// Memory that is given again at the next call with the same slot on this thread: fresh pages cost more than the work.
inline float* Scratch(int slot, size_t floats) {
  struct Piece {
    float* at = nullptr;
    size_t floats = 0;
    ~Piece() { std::free(at); }
  };
  static thread_local Piece pieces[24];
  Piece& piece = pieces[slot];
  if (piece.floats < floats) {
    std::free(piece.at);
    piece.floats = floats + floats / 4;
    piece.at = static_cast<float*>(std::aligned_alloc(64, (piece.floats * 4 + 63) / 64 * 64));
    if (!piece.at) {
      piece.floats = 0;
      throw std::bad_alloc();
    }
  }
  return piece.at;
}

// Has a large result lie in large pages where the system gives them on request: it is fresh memory at every call, and
// each page of it costs an interruption.
inline float* LargePages(float* at, size_t floats) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t page = 1 << 21, begin = (reinterpret_cast<uintptr_t>(at) + page - 1) & ~(page - 1),
                  end = reinterpret_cast<uintptr_t>(at + floats) & ~(page - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return at;
}
