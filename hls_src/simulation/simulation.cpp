#include "simulation.h"

#include <pthread.h>

#include <stdexcept>

#include "fiber.h"
#include "stream_model.h"

namespace m3vit {
namespace sim {

namespace {

struct Start {  // what a new thread or stack begins with
  std::function<void()> body;
};

void* run_thread(void* argument) {
  static_cast<Start*>(argument)->body();
  return nullptr;
}

thread_local Start* next_start = nullptr;

void run_fiber() { next_start->body(); }

}  // namespace

Options& options() {
  thread_local Options value;
  return value;
}

Process*& self() {
  thread_local Process* value = nullptr;
  return value;
}

Process::Process() = default;
Process::~Process() = default;

Simulation::Simulation() : mode_(options().mode) {}
Simulation::~Simulation() = default;

void Simulation::add(const std::string& name, std::function<void()> body) {
  processes_.push_back(std::make_unique<Process>());
  Process& process = *processes_.back();
  process.name = name;
  process.body = std::move(body);
  process.simulation = this;
}

std::unique_lock<std::mutex> Simulation::lock() {
  return mode_ == Mode::THREADS ? std::unique_lock<std::mutex>(mutex_) : std::unique_lock<std::mutex>();
}

void Simulation::wait(std::unique_lock<std::mutex>& held, const std::vector<const StreamBase*>& streams, bool writing) {
  Process& process = *self();
  process.waits_for = streams;
  process.writing = writing;
  process.runnable = false;
  ++waiting_;
  if (waiting_ == live_) {
    fail(deadlock_report(), true);
  }
  if (mode_ == Mode::THREADS) {
    process.wake.wait(held, [&] { return process.runnable || stopped(); });
  } else if (!stopped()) {
    Fiber::pass(*process.fiber, *scheduler_, false);
    self() = &process;
  }
  process.waits_for.clear();
  if (stopped()) {
    throw Stopped{};
  }
}

void Simulation::wake(Process& process) {
  if (!process.runnable) {
    process.runnable = true;
    --waiting_;
    process.wake.notify_one();
  }
}

void Simulation::fail(const std::string& what, bool deadlock) {
  if (!failed_ && !stopped()) {
    failed_ = true;
    deadlock_ = deadlock;
    what_ = what;
  }
  stopped_ = true;
  for (const auto& process : processes_) {
    process->wake.notify_all();
  }
}

void Simulation::stop() {
  const auto held = lock();
  stopped_ = true;
  for (const auto& process : processes_) {
    process->wake.notify_all();
  }
}

std::string Simulation::deadlock_report() const {
  std::string text = "deadlock:";
  for (const auto& process : processes_) {
    if (process->done) {
      continue;
    }
    text += text.back() == ':' ? " " : "; ";
    text += process->name + (process->writing ? " waits to write " : " waits to read ");
    for (std::size_t i = 0; i < process->waits_for.size(); ++i) {
      const StreamBase& stream = *process->waits_for[i];
      text += (i == 0 ? "" : " or ") + stream.name();
      text += " (" + std::to_string(stream.count()) + " of " + std::to_string(stream.depth()) + ")";
    }
  }
  return text;
}

void Simulation::run_process(Process& process) {
  self() = &process;
  std::string what;
  try {
    process.body();
  } catch (const Stopped&) {
  } catch (const std::exception& error) {
    what = process.name + ": " + error.what();
  }
  const auto held = lock();
  process.done = true;
  --live_;
  if (!what.empty()) {
    fail(what, false);
  } else if (live_ != 0 && waiting_ == live_) {
    fail(deadlock_report(), true);
  }
}

void Simulation::run_threads() {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  std::vector<std::unique_ptr<Start>> starts;
  std::vector<pthread_t> threads;
  bool refused = false;
  for (const auto& process : processes_) {
    Process& started = *process;
    starts.push_back(std::make_unique<Start>(Start{[this, &started] { run_process(started); }}));
    pthread_t thread{};
    if (refused || pthread_create(&thread, &attributes, run_thread, starts.back().get()) != 0) {
      const auto held = lock();
      refused = true;
      started.done = true;
      --live_;
      fail("cannot start a thread for process " + started.name, false);
    } else {
      threads.push_back(thread);
    }
  }
  for (const pthread_t thread : threads) {
    pthread_join(thread, nullptr);
  }
  pthread_attr_destroy(&attributes);
}

void Simulation::run_in_turn() {
  scheduler_ = std::make_unique<Fiber>();
  std::vector<std::unique_ptr<Start>> starts;
  for (const auto& process : processes_) {
    Process& started = *process;
    starts.push_back(std::make_unique<Start>(Start{[this, &started] {
      Fiber::arrive(*started.fiber);
      run_process(started);
      Fiber::pass(*started.fiber, *scheduler_, true);
    }}));
    started.fiber = std::make_unique<Fiber>(run_fiber);
  }
  Process* const caller = self();
  while (live_ != 0) {
    for (std::size_t i = 0; i < processes_.size(); ++i) {
      Process& process = *processes_[i];
      if (!process.done && (process.runnable || stopped())) {
        next_start = starts[i].get();
        Fiber::pass(*scheduler_, *process.fiber, false);
      }
    }
  }
  self() = caller;
}

void Simulation::run() {
  const auto& chosen = options();
  live_ = processes_.size();
  if (chosen.announce) {
    chosen.announce(this);
  }
  if (mode_ == Mode::THREADS) {
    run_threads();
  } else {
    run_in_turn();
  }
  if (chosen.announce) {
    chosen.announce(nullptr);
  }
  if (failed_) {
    throw Failure(what_, deadlock_);
  }
  if (stopped()) {
    throw Stopped{};
  }
  for (const StreamBase* stream : streams_) {
    if (stream->count() != 0) {
      throw Failure("stream " + stream->name() + " holds " + std::to_string(stream->count()) + " at the end", false);
    }
  }
}

}  // namespace sim
}  // namespace m3vit
