// C interface of the simulated engine, for the driver's back end `hls`.
#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <string>

#include "engine/depths.h"
#include "engine/engine.h"
#include "fiber.h"
#include "simulation.h"

namespace {

using m3vit::sim::Failure;
using m3vit::sim::Mode;
using m3vit::sim::Options;
using m3vit::sim::Simulation;
using m3vit::sim::Stopped;

enum Result : int { FINISHED, DEADLOCK, STOPPED, FAILED };

struct Engine {
  Options options;
  std::mutex mutex;                  // of the two below
  Simulation* running = nullptr;
  bool stop = false;
  std::string report;
};

struct Call {
  Engine* engine;
  std::uint8_t* memory;
  const std::uint64_t* arenas;
  std::uint32_t program;
  std::uint32_t commands;
  std::uint32_t record;
  int result;
};

int run(Call& call) {
  Engine& engine = *call.engine;
  Options& options = m3vit::sim::options();
  options = engine.options;
  options.announce = [&engine](Simulation* simulation) {
    const std::lock_guard<std::mutex> held(engine.mutex);
    engine.running = simulation;
    if (simulation != nullptr && engine.stop) {
      simulation->stop();
    }
  };
  try {
    const m3vit::Port port(reinterpret_cast<m3vit::beat_t*>(call.memory));
    const std::uint64_t* arena = call.arenas;
    m3vit_engine(port, port, port, port, port, port, arena[0], arena[1], arena[2], arena[3], call.program,
                 call.commands, call.record);
  } catch (const Stopped&) {
    return STOPPED;
  } catch (const Failure& failure) {
    engine.report = failure.what();
    return failure.deadlock() ? DEADLOCK : FAILED;
  } catch (const std::exception& error) {
    engine.report = error.what();
    return FAILED;
  }
  return FINISHED;
}

void* run_thread(void* argument) {
  Call& call = *static_cast<Call*>(argument);
  call.result = run(call);
  return nullptr;
}

}  // namespace

extern "C" {

void* m3vit_hls_new() { return new Engine; }

void m3vit_hls_delete(void* engine) { delete static_cast<Engine*>(engine); }

// 1: all processes on one thread, in turn; 0: a thread each.
void m3vit_hls_sequential(void* engine, int on) {
  static_cast<Engine*>(engine)->options.mode = on != 0 ? Mode::SEQUENTIAL : Mode::THREADS;
}

// Another depth for a stream from the next run on; negative: its own again. Returns 0, or -1 for an unknown stream.
int m3vit_hls_depth(void* engine, const char* stream, int depth) {
  for (const auto& known : m3vit::depth::ALL) {
    if (std::strcmp(known.name, stream) == 0) {
      auto& depths = static_cast<Engine*>(engine)->options.depths;
      if (depth < 0) {
        depths.erase(stream);
      } else {
        depths[stream] = depth;
      }
      return 0;
    }
  }
  return -1;
}

// Name, depth and least depth of stream `index`; returns 0, or -1 past the last.
int m3vit_hls_stream(int index, const char** name, int* depth, int* least) {
  if (index < 0 || std::size_t(index) >= sizeof(m3vit::depth::ALL) / sizeof(m3vit::depth::ALL[0])) {
    return -1;
  }
  const m3vit::Depth& known = m3vit::depth::ALL[index];
  *name = known.name;
  *depth = known.depth;
  *least = known.least;
  return 0;
}

std::uint32_t m3vit_hls_build_hash() { return m3vit::BUILD_HASH; }

// Runs one program. `arenas` are addresses that count from `memory`. Returns a Result; the report says more.
int m3vit_hls_run(void* handle, std::uint8_t* memory, const std::uint64_t* arenas, std::uint32_t program,
                  std::uint32_t commands, std::uint32_t record) {
  Engine& engine = *static_cast<Engine*>(handle);
  engine.report.clear();
  Call call = {&engine, memory, arenas, program, commands, record, FAILED};
  // The stores of the engine lie on the stack, and a caller's may be small.
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, m3vit::sim::STACK_BYTES);
  pthread_t thread{};
  if (pthread_create(&thread, &attributes, run_thread, &call) == 0) {
    pthread_join(thread, nullptr);
  } else {
    engine.report = "cannot start a thread";
  }
  pthread_attr_destroy(&attributes);
  return call.result;
}

const char* m3vit_hls_report(void* engine) { return static_cast<Engine*>(engine)->report.c_str(); }

// Ends the program that runs and refuses new ones until `on` is 0. From any thread.
void m3vit_hls_stop(void* handle, int on) {
  Engine& engine = *static_cast<Engine*>(handle);
  const std::lock_guard<std::mutex> held(engine.mutex);
  engine.stop = on != 0;
  if (engine.stop && engine.running != nullptr) {
    engine.running->stop();
  }
}

}  // extern "C"
