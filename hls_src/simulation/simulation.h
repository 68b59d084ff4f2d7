// C simulation of a DATAFLOW region: every process on its own, streams bounded and blocking as in hardware, a deadlock
// found the moment it happens. Two ways to run, same bits: THREADS, one thread per process; SEQUENTIAL, all on the
// caller's thread, one process at a time, control passing on only where a process has to wait. (Vitis' own C simulation
// calls one process after the other, each to its end. That cannot work here: the order in which experts are loaded
// depends on logits that weights loaded before have computed.)
#ifndef M3VIT_SIMULATION_H
#define M3VIT_SIMULATION_H

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace m3vit {
namespace sim {

class Fiber;
class Simulation;
class StreamBase;

enum class Mode { THREADS, SEQUENTIAL };

struct Stopped {};  // unwinds a process when the simulation ends early

// How the next simulation of this thread shall run.
struct Options {
  Mode mode = Mode::THREADS;
  std::map<std::string, int> depths;           // stream → another depth than its own
  std::function<void(Simulation*)> announce;   // told of a simulation that begins, and of nullptr when it is over
};
Options& options();

struct Process {
  std::string name;
  std::function<void()> body;
  Simulation* simulation = nullptr;
  std::vector<const StreamBase*> waits_for;
  bool writing = false;
  bool runnable = true;
  bool done = false;
  std::condition_variable wake;
  std::unique_ptr<Fiber> fiber;
  Process();
  ~Process();
};

// The process that runs on this thread.
Process*& self();

class Failure : public std::exception {
 public:
  explicit Failure(std::string what, bool deadlock) : what_(std::move(what)), deadlock_(deadlock) {}
  const char* what() const noexcept override { return what_.c_str(); }
  bool deadlock() const { return deadlock_; }

 private:
  std::string what_;
  bool deadlock_;
};

class Simulation {
 public:
  Simulation();
  ~Simulation();
  Simulation(const Simulation&) = delete;
  Simulation& operator=(const Simulation&) = delete;

  void add(const std::string& name, std::function<void()> body);
  void watch(const StreamBase& stream) { streams_.push_back(&stream); }

  // Runs all processes to their end. Throws Failure for a deadlock, a process that failed, a stream that is not empty
  // at the end (its content would meet the next start), and Stopped if somebody asked to stop.
  void run();

  void stop();  // from any thread

  // ---- for streams; the lock is held in THREADS mode
  std::unique_lock<std::mutex> lock();
  void wait(std::unique_lock<std::mutex>& held, const std::vector<const StreamBase*>& streams, bool writing);
  void wake(Process& process);
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }

 private:
  void fail(const std::string& what, bool deadlock);
  void run_process(Process& process);
  void run_threads();
  void run_in_turn();
  std::string deadlock_report() const;

  const Mode mode_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Process>> processes_;
  std::vector<const StreamBase*> streams_;
  std::size_t live_ = 0;
  std::size_t waiting_ = 0;
  std::atomic<bool> stopped_{false};
  bool failed_ = false;
  bool deadlock_ = false;
  std::string what_;
  std::unique_ptr<Fiber> scheduler_;
};

}  // namespace sim
}  // namespace m3vit

#endif  // M3VIT_SIMULATION_H
