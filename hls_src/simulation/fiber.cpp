#include "fiber.h"

#include <sys/mman.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define M3VIT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define M3VIT_ASAN 1
#endif
#endif

#ifdef M3VIT_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace m3vit {
namespace sim {

namespace {

thread_local Fiber* left = nullptr;  // the one that passed control on last

}  // namespace

Fiber::Fiber(void (*entry)()) {
  stack_ = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack_ == MAP_FAILED) {
    stack_ = nullptr;
    throw std::bad_alloc();
  }
  bottom_ = stack_;
  size_ = STACK_BYTES;
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = STACK_BYTES;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

Fiber::~Fiber() {
  if (stack_ != nullptr) {
    munmap(stack_, STACK_BYTES);
  }
}

void Fiber::pass(Fiber& from, Fiber& to, bool final) {
  left = &from;
#ifdef M3VIT_ASAN
  __sanitizer_start_switch_fiber(final ? nullptr : &from.fake_, to.bottom_, to.size_);
#else
  static_cast<void>(final);
#endif
  swapcontext(&from.context_, &to.context_);
  arrive(from);
}

void Fiber::arrive(Fiber& here) {
#ifdef M3VIT_ASAN
  // Tells which stack was left, so that the scheduler's, which we did not make, can be named when going back to it.
  __sanitizer_finish_switch_fiber(here.fake_, &left->bottom_, &left->size_);
#else
  static_cast<void>(here);
#endif
}

}  // namespace sim
}  // namespace m3vit
