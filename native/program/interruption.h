// Ctrl-C (and SIGTERM): the running call of a context is cancelled, so that what was written so far is closed properly.
#pragma once

#include <atomic>
#include <csignal>
#include <mutex>
#include <thread>

#include "mobillama.h"

namespace mobillama {

// Make one before any other thread starts: threads inherit that they leave these signals alone. A second signal, and
// one while there is no context, ends the program at once.
class Interruption {
 public:
  Interruption();
  ~Interruption();
  Interruption(const Interruption&) = delete;
  Interruption& operator=(const Interruption&) = delete;
  // The context to cancel; nullptr before it is freed.
  void watch(mobillama_context* context);
  bool asked() const { return asked_; }

 private:
  void wait();
  sigset_t signals_;
  std::mutex mutex_;
  mobillama_context* context_ = nullptr;
  std::atomic<bool> asked_ = false, done_ = false;
  std::thread thread_;
};

}  // namespace mobillama
