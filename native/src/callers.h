// Who is inside an object of the C door, so that whoever frees it can wait for them.
#pragma once

#include <atomic>
#include <cstdint>

namespace mobillama {

class Callers {
 public:
  Callers();

  // Failure (INVALID) if the object is being freed, or if fork() made this process: an object's threads are not in a
  // child, and who was inside when it was forked will never leave.
  void enter();
  void leave() noexcept;

  // Let nobody in from now on, and wait until all have left. False in a child of fork(): there the object must stay as
  // it is, for threads that do not exist cannot be joined.
  bool close() noexcept;

 private:
  static constexpr uint32_t kClosing = uint32_t{1} << 31;
  const uint32_t process_;          // in which the object was made, in forks from the first
  std::atomic<uint32_t> inside_{0};  // callers; kClosing besides when the object is being freed
};

// One caller, inside as long as this lives.
class Call {
 public:
  explicit Call(Callers& callers) : callers_(callers) { callers_.enter(); }
  ~Call() { callers_.leave(); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

 private:
  Callers& callers_;
};

}  // namespace mobillama
