#include "record.h"

namespace m3vit {

namespace {

static_assert(RECORD_JOB_BYTES % LINE_BYTES == 0 && RECORD_JOBS_START % LINE_BYTES == 0, "the record is whole pieces");

constexpr int HEAD_BYTES = RECORD_JOBS_START;

void put(act_t* bytes, int offset, std::uint64_t value, int size) {
#pragma HLS INLINE
PUT:
  for (int i = 0; i < size; ++i) {
#pragma HLS UNROLL
    bytes[offset + i] = act_t(std::uint8_t(value >> (8 * i)));
  }
}

void send(Stream<outgoing_t>& outgoing, std::uint32_t offset, const act_t* bytes) {
#pragma HLS INLINE
  outgoing_t item;
  item.kind = Outgoing::PIECE;
  item.place = offset;
SEND:
  for (int i = 0; i < LINE_BYTES; ++i) {
#pragma HLS UNROLL
    item.line.byte[i] = bytes[i];
  }
  outgoing.write(item);
}

}  // namespace

void send_signal(Stream<outgoing_t>& outgoing, Outgoing kind) {
  outgoing_t item = {};
  item.kind = kind;
  outgoing.write(item);
}

void write_job(Stream<outgoing_t>& outgoing, std::uint32_t record, std::uint32_t index, std::uint32_t job,
               const job_t& entry) {
  act_t bytes[RECORD_JOB_BYTES] = {};
  put(bytes, JOB_JOB_OFFSET, job, 8);
  put(bytes, JOB_PAIRS_OFFSET, entry.pairs, 8);
  put(bytes, JOB_EXPERTS_OFFSET, entry.experts, 8);
  put(bytes, JOB_MACS_OFFSET, entry.macs, 8);
  put(bytes, JOB_QUEUE_CRC_OFFSET, entry.queue_crc, 8);
  if (record % LINE_BYTES == 0) {
    const std::uint32_t offset = record + RECORD_JOBS_START + index * RECORD_JOB_BYTES;
  JOB_PIECES:
    for (int piece = 0; piece < RECORD_JOB_BYTES; piece += LINE_BYTES) {
      send(outgoing, offset + std::uint32_t(piece), bytes + piece);
    }
  }
}

void write_record(Stream<outgoing_t>& outgoing, std::uint32_t record, std::uint32_t jobs, const layer_t& end,
                  const counters_t& counters) {
  act_t bytes[HEAD_BYTES] = {};
  put(bytes, RECORD_MAGIC_OFFSET, RECORD_MAGIC, 4);
  put(bytes, RECORD_VERSION_OFFSET, RECORD_VERSION, 4);
  put(bytes, RECORD_ENGINE_HASH_OFFSET, ENGINE_HASH, 4);
  put(bytes, RECORD_ERROR_OFFSET, end.error, 4);
  put(bytes, RECORD_ERROR_COMMAND_OFFSET, end.error == 0 ? 0 : end.commands, 4);
  put(bytes, RECORD_ERROR_DETAIL_OFFSET, end.detail, 4);
  put(bytes, RECORD_COMMANDS_OFFSET, end.commands, 4);
  put(bytes, RECORD_JOBS_OFFSET, jobs, 4);
  put(bytes, RECORD_BUILD_HASH_OFFSET, BUILD_HASH, 4);
  put(bytes, COUNTER_BYTES_READ_OFFSET, counters.bytes_read, 8);
  put(bytes, COUNTER_BYTES_WRITTEN_OFFSET, counters.bytes_written, 8);
  put(bytes, COUNTER_WEIGHT_BYTES_OFFSET, counters.weight_bytes, 8);
  put(bytes, COUNTER_PAIRS_OFFSET, counters.pairs, 8);
  put(bytes, COUNTER_EXPERTS_OFFSET, counters.experts, 8);
  put(bytes, COUNTER_UNITS_OFFSET, counters.units, 8);
  put(bytes, COUNTER_MACS_OFFSET, counters.macs, 8);
  if (record % LINE_BYTES == 0) {
  RECORD_PIECES:
    for (int piece = HEAD_BYTES - LINE_BYTES; piece >= 0; piece -= LINE_BYTES) {
      if (piece == 0) {
        send_signal(outgoing, Outgoing::SETTLE);
      }
      send(outgoing, record + std::uint32_t(piece), bytes + piece);
    }
  }
  send_signal(outgoing, Outgoing::SETTLE);
}

}  // namespace m3vit
