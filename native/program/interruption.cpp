#include "interruption.h"

#include <pthread.h>
#include <unistd.h>

namespace mobillama {

// A thread of its own takes the signals: cancelling is not among the few things that a signal handler may do.
Interruption::Interruption() {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGINT);
  sigaddset(&signals_, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  thread_ = std::thread([this] { wait(); });
}

Interruption::~Interruption() {
  done_ = true;
  pthread_kill(thread_.native_handle(), SIGINT);
  thread_.join();
}

void Interruption::watch(mobillama_context* context) {
  const std::lock_guard lock(mutex_);
  context_ = context;
}

void Interruption::wait() {
  for (int signal = 0; sigwait(&signals_, &signal) == 0 && !done_;) {
    const std::lock_guard lock(mutex_);
    if (context_ == nullptr || asked_) _exit(128 + signal);
    asked_ = true;
    mobillama_cancel(context_);
  }
}

}  // namespace mobillama
