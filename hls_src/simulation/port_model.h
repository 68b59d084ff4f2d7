// Memory ports for C simulation: the calls of hls::burst_maxi on plain memory, with the rules of the bus checked.
#ifndef M3VIT_PORT_MODEL_H
#define M3VIT_PORT_MODEL_H

#include <cstddef>
#include <cstdint>
#include <deque>
#include <stdexcept>
#include <utility>

#include "m3vit_config.h"

namespace m3vit {
namespace sim {

struct Beat {
  std::uint8_t byte[PORT_BYTES];
};
static_assert(sizeof(Beat) == PORT_BYTES, "memory is read as beats");

// Addresses count beats from `memory`.
class Port {
 public:
  explicit Port(Beat* memory) : memory_(memory) {}

  void read_request(std::size_t address, std::size_t beats) { ask(reads_, address, beats); }

  Beat read() {
    return memory_[next(reads_)];
  }

  void write_request(std::size_t address, std::size_t beats) { ask(writes_, address, beats); }

  void write(const Beat& beat) {
    memory_[next(writes_)] = beat;
    if (ended_) {
      ++answers_;
    }
  }

  void write_response() {
    if (answers_ == 0) {
      throw std::logic_error("write response: expected a burst that was written whole, found none");
    }
    --answers_;
  }

 private:
  struct Burst {
    std::size_t address;
    std::size_t beats;
  };

  static void ask(std::deque<Burst>& bursts, std::size_t address, std::size_t beats) {
    const std::size_t page = 4096 / sizeof(Beat);
    if (beats == 0 || beats > std::size_t(BURST_BEATS) || address / page != (address + beats - 1) / page) {
      throw std::logic_error("burst: expected 1 to BURST_BEATS beats within 4 KiB");
    }
    if (bursts.size() == std::size_t(OUTSTANDING)) {
      throw std::logic_error("burst: expected at most OUTSTANDING bursts in flight");
    }
    bursts.push_back({address, beats});
  }

  std::size_t next(std::deque<Burst>& bursts) {
    if (bursts.empty()) {
      throw std::logic_error("beat: expected one that was asked for");
    }
    Burst& burst = bursts.front();
    const std::size_t address = burst.address++;
    ended_ = --burst.beats == 0;
    if (ended_) {
      bursts.pop_front();
    }
    return address;
  }

  Beat* memory_;
  std::deque<Burst> reads_;
  std::deque<Burst> writes_;
  std::size_t answers_ = 0;
  bool ended_ = false;  // the last beat ended its burst
};

}  // namespace sim
}  // namespace m3vit

#endif  // M3VIT_PORT_MODEL_H
