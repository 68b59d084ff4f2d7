// A stack of its own for a process that takes turns with others on one thread.
#ifndef M3VIT_FIBER_H
#define M3VIT_FIBER_H

#include <ucontext.h>

#include <cstddef>

namespace m3vit {
namespace sim {

constexpr std::size_t STACK_BYTES = std::size_t{64} << 20;  // taken from the system only as it is touched

class Fiber {
 public:
  Fiber() = default;                    // the caller's own stack
  explicit Fiber(void (*entry)());      // a new one, which begins with `entry`; that must never return
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves `from` and goes on where `to` was left. `final`: `from` will never be gone back to.
  static void pass(Fiber& from, Fiber& to, bool final);
  static void arrive(Fiber& here);      // first thing on a new stack

 private:
  ucontext_t context_{};
  void* stack_ = nullptr;
  [[maybe_unused]] void* fake_ = nullptr;  // AddressSanitizer's
  const void* bottom_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace sim
}  // namespace m3vit

#endif  // M3VIT_FIBER_H
