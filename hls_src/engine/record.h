// Counters that need no clock, and the record that shows them.
#ifndef M3VIT_RECORD_H
#define M3VIT_RECORD_H

#include "stream.h"
#include "types.h"

namespace m3vit {

struct counters_t {
  std::uint64_t bytes_read;
  std::uint64_t bytes_written;
  std::uint64_t weight_bytes;
  std::uint64_t pairs;
  std::uint64_t experts;
  std::uint64_t units;
  std::uint64_t macs;
};

struct job_t {
  std::uint64_t pairs;
  std::uint64_t experts;
  std::uint64_t macs;
  std::uint32_t queue_crc;
};

// To the writer: something that has no bytes.
void send_signal(Stream<outgoing_t>& outgoing, Outgoing kind);

// Both write nothing where the record's offset is not a multiple of its pieces.
void write_job(Stream<outgoing_t>& outgoing, std::uint32_t record, std::uint32_t index, std::uint32_t job,
               const job_t& entry);

// Counters first, then the line with the magic: a record that has one is complete.
void write_record(Stream<outgoing_t>& outgoing, std::uint32_t record, std::uint32_t jobs, const layer_t& end,
                  const counters_t& counters);

}  // namespace m3vit

#endif  // M3VIT_RECORD_H
