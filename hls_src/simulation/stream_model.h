// Bounded blocking streams for C simulation. One process reads a stream and one writes it.
#ifndef M3VIT_STREAM_MODEL_H
#define M3VIT_STREAM_MODEL_H

#include <cstddef>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine/stream_word.h"
#include "simulation.h"

namespace m3vit {
namespace sim {

class StreamBase {
 public:
  StreamBase(const StreamBase&) = delete;
  StreamBase& operator=(const StreamBase&) = delete;
  const std::string& name() const { return name_; }
  std::size_t depth() const { return depth_; }
  std::size_t count() const { return count_; }

 protected:
  StreamBase(const char* name, int depth) : name_(name) {
    const auto other = options().depths.find(name_);
    depth_ = std::size_t(other == options().depths.end() ? depth : other->second);
  }
  ~StreamBase() = default;

  // Blocks the calling process until the stream is not full, or not empty.
  void wait_until(std::unique_lock<std::mutex>& held, bool writing) {
    Simulation& simulation = *self()->simulation;
    if (simulation.stopped()) {
      throw Stopped{};
    }
    while (writing ? count_ == depth_ : count_ == 0) {
      (writing ? writer_ : reader_) = self();
      simulation.wait(held, {this}, writing);
    }
  }

  void moved(Process*& partner) {
    if (partner != nullptr) {
      self()->simulation->wake(*partner);
      partner = nullptr;
    }
  }

  std::string name_;
  std::size_t depth_ = 0;
  std::size_t count_ = 0;
  std::size_t first_ = 0;
  Process* reader_ = nullptr;  // waits for content
  Process* writer_ = nullptr;  // waits for room

  friend void wait_any_of(const std::vector<StreamBase*>& streams);
};

// Blocks until one of the streams has content.
inline void wait_any_of(const std::vector<StreamBase*>& streams) {
  Simulation& simulation = *self()->simulation;
  auto held = simulation.lock();
  if (simulation.stopped()) {
    throw Stopped{};
  }
  std::vector<const StreamBase*> empty;
  for (StreamBase* stream : streams) {
    if (stream->count_ != 0) {
      return;
    }
    empty.push_back(stream);
  }
  for (StreamBase* stream : streams) {
    stream->reader_ = self();
  }
  simulation.wait(held, empty, false);
  for (StreamBase* stream : streams) {
    stream->reader_ = nullptr;
  }
}

// Streams that must be empty when all processes are over.
template <class S>
void watch(Simulation& simulation, const S& streams) {
  if constexpr (std::is_base_of_v<StreamBase, S>) {
    simulation.watch(streams);
  } else {
    for (const StreamBase& stream : streams) {
      simulation.watch(stream);
    }
  }
}

template <class... Streams>
void watch_all(Simulation& simulation, const Streams&... streams) {
  (watch(simulation, streams), ...);
}

}  // namespace sim

template <class V>
class Stream : public sim::StreamBase {
 public:
  Stream(const char* name, int depth) : StreamBase(name, depth), ring_(depth_) {}

  V read() {
    auto held = sim::self()->simulation->lock();
    wait_until(held, false);
    V value = std::move(ring_[first_]);
    first_ = first_ + 1 == depth_ ? 0 : first_ + 1;
    --count_;
    moved(writer_);
    return value;
  }

  void write(const V& value) {
    auto held = sim::self()->simulation->lock();
    wait_until(held, true);
    const std::size_t last = first_ + count_;
    ring_[last >= depth_ ? last - depth_ : last] = value;
    ++count_;
    moved(reader_);
  }

  bool empty() {
    auto held = sim::self()->simulation->lock();
    if (sim::self()->simulation->stopped()) {
      throw sim::Stopped{};
    }
    return count_ == 0;
  }

 private:
  std::vector<typename StreamWord<V>::type> ring_;
};

template <class V, int DEPTH>
class Channel : public Stream<V> {
 public:
  explicit Channel(const char* name) : Stream<V>(name, DEPTH) {}
};

// N streams side by side, with one name and one depth; passed on as an array of streams.
template <class V, int DEPTH, int N>
class Channels {
 public:
  explicit Channels(const char* name) : Channels(name, std::make_integer_sequence<int, N>{}) {}
  operator Stream<V>*() { return streams_; }
  const Stream<V>* begin() const { return streams_; }
  const Stream<V>* end() const { return streams_ + N; }

 private:
  template <int... INDEX>
  Channels(const char* name, std::integer_sequence<int, INDEX...>)
      : streams_{{(static_cast<void>(INDEX), name), DEPTH}...} {}

  Stream<V> streams_[N];
};

template <class... Streams>
void wait_any(Streams&... streams) {
  sim::wait_any_of({&streams...});
}

}  // namespace m3vit

#endif  // M3VIT_STREAM_MODEL_H
