#include "store.h"

#include "lines.h"
#include "mac.h"
#include "numerics.h"
#include "record.h"

namespace m3vit {

namespace {

struct wide_row_t {
  wide_t value[O];
};

constexpr int some(int rows) { return at_least(rows, 1); }  // no array is empty

wide_row_t read_wide(int row, const wide_row_t ultra[some(ULTRA_ROWS)], const wide_row_t block[some(BLOCK_ROWS)]) {
#pragma HLS INLINE
  return row < ULTRA_ROWS ? ultra[row] : block[row - ULTRA_ROWS];
}

void write_wide(int row, const wide_row_t& sums, wide_row_t ultra[some(ULTRA_ROWS)],
                wide_row_t block[some(BLOCK_ROWS)]) {
#pragma HLS INLINE
  if (row < ULTRA_ROWS) {
    ultra[row] = sums;
  } else {
    block[row - ULTRA_ROWS] = sums;
  }
}

// Steps from `inner` to `inner` of `outer`: loops over two indices are one loop, which no change of the outer index
// interrupts (a nest whose inner bound is a variable is not flattened).
void step_pair(int& outer, int& inner, int inners) {
#pragma HLS INLINE
  if (inner == inners - 1) {
    inner = 0;
    ++outer;
  } else {
    ++inner;
  }
}

void send_line(Stream<outgoing_t>& outgoing, const layer_t& layer, std::uint32_t index, const line_t& line) {
#pragma HLS INLINE
  outgoing_t item;
  item.kind = Outgoing::LINE;
  item.place = layer.output * BURST_BEATS + index;
  item.line = line;
  outgoing.write(item);
}

// Collects the int8 rows of one tile and sends their lines, lanes past the last output as zeros.
void store_linear(const layer_t& layer, int unit, const tile_t& tile, Stream<result_t>& results,
                  Stream<outgoing_t>& outgoing) {
  act_t packed[T][UNIT_OUTPUT_BYTES];
#pragma HLS ARRAY_PARTITION variable = packed cyclic factor = LINE_BYTES dim = 2
#pragma HLS BIND_STORAGE variable = packed type = ram_2p impl = lutram
  const int count = int(tile.count);
  const int unit_bytes = int(layer.unit_tiles) * O;
  const int left = int(layer.outputs) - unit * unit_bytes;
  const int bytes = left < int(tile.tiles) * O ? left : int(tile.tiles) * O;
  const int lines = ceil_div(bytes, LINE_BYTES);
  int o = 0;
  int t = 0;
LINEAR_TOKEN:
  for (int step = 0; step < int(tile.tiles) * count; ++step) {
#pragma HLS PIPELINE II = 1
    const result_t row = results.read();
  LINEAR_LANE:
    for (int lane = 0; lane < O; ++lane) {
#pragma HLS UNROLL
      packed[t][o * O + lane] = act_t(row.value[lane]);
    }
    step_pair(o, t, count);
  }
  t = 0;
  int j = 0;
LINEAR_LINE:
  for (int step = 0; step < count * lines; ++step) {
#pragma HLS PIPELINE II = 1
    line_t line;
  LINEAR_BYTE:
    for (int i = 0; i < LINE_BYTES; ++i) {
#pragma HLS UNROLL
      const int place = j * LINE_BYTES + i;
      line.byte[i] = place < bytes ? packed[t][place] : act_t(0);
    }
    const std::uint32_t first = std::uint32_t(tile.token[t]) * std::uint32_t(layer.output_lines) +
                                std::uint32_t(unit * unit_bytes / LINE_BYTES);
    send_line(outgoing, layer, first + std::uint32_t(j), line);
    step_pair(t, j, lines);
  }
}

// `base`: the output tile that the unit begins with; units of an ACCUMULATE layer hold different outputs.
void combine(const layer_t& layer, const tile_t& tile, int base, Stream<result_t>& results, bool touched[MAX_TOKENS],
             wide_row_t ultra[some(ULTRA_ROWS)], wide_row_t block[some(BLOCK_ROWS)]) {
  const int count = int(tile.count);
  bool first[T];
#pragma HLS ARRAY_PARTITION variable = first complete
FIRST:
  for (int t = 0; t < T; ++t) {
    // Two cycles per token, so that no read meets the write before it: lanes past the last token read token 0's.
#pragma HLS PIPELINE II = 2
    const int token = int(tile.token[t]);
    first[t] = tile.overwrite || (layer.kind == Kind::MOE && !touched[token]);
    if (t < count) {
      touched[token] = true;
    }
  }
  int o = 0;
  int t = 0;
COMBINE_TOKEN:
  for (int step = 0; step < int(tile.tiles) * count; ++step) {
    // Tokens of a tile differ, and so do its output tiles: no row is touched twice before the loop is over.
#pragma HLS PIPELINE II = 1
#pragma HLS DEPENDENCE variable = ultra inter false
#pragma HLS DEPENDENCE variable = block inter false
    const result_t row = results.read();
    const int address = int(tile.token[t]) * WIDE_TILES + base + o;
    wide_row_t sums = read_wide(address, ultra, block);
  COMBINE_LANE:
    for (int lane = 0; lane < O; ++lane) {
#pragma HLS UNROLL
      const wide_t share = wide_t(weighted(row.value[lane], tile.weight[t]));
      sums.value[lane] = first[t] ? share : wide_t(sums.value[lane] + share);
    }
    write_wide(address, sums, ultra, block);
    step_pair(o, t, count);
  }
}

// Tokens begin … begin + count - 1, at most T, are complete: adds their residual rows, rounds, sends their lines. Not
// inlined: one set of roundings for both callers.
void finish(const layer_t& layer, int begin, int count, ahead_t& ahead, Stream<request_t>& requests,
            Stream<line_t>& residual_lines, Stream<outgoing_t>& outgoing, const wide_row_t ultra[some(ULTRA_ROWS)],
            const wide_row_t block[some(BLOCK_ROWS)]) {
#pragma HLS INLINE off
  narrow_t before[T][ROW_VALUES];
  narrow_t after[T][ROW_VALUES];
#pragma HLS ARRAY_PARTITION variable = before cyclic factor = ROW_BANKS dim = 2
#pragma HLS ARRAY_PARTITION variable = after cyclic factor = ROW_BANKS dim = 2
#pragma HLS BIND_STORAGE variable = before type = ram_2p impl = lutram
#pragma HLS BIND_STORAGE variable = after type = ram_2p impl = lutram
  const int lines = int(layer.output_lines);
  const int tiles = ceil_div(int(layer.outputs), O);
  int t = 0;
  int j = 0;
RESIDUAL_LINE:
  for (int step = 0; step < count * lines; ++step) {
#pragma HLS PIPELINE II = 1
    const line_t line = take_line(ahead, requests, residual_lines);
  RESIDUAL_VALUE:
    for (int i = 0; i < LINE_VALUES; ++i) {
#pragma HLS UNROLL
      const int low = std::uint8_t(line.byte[2 * i]);
      before[t][j * LINE_VALUES + i] = narrow_t(line.byte[2 * i + 1] * 256 + low);
    }
    step_pair(t, j, lines);
  }
  t = 0;
  int o = 0;
FINISH_TILE:
  for (int step = 0; step < count * tiles; ++step) {
#pragma HLS PIPELINE II = 1
    const wide_row_t sums = read_wide((begin + t) * WIDE_TILES + o, ultra, block);
  FINISH_LANE:
    for (int lane = 0; lane < O; ++lane) {
#pragma HLS UNROLL
      const int place = o * O + lane;
      if (place < int(layer.outputs)) {
        const finish_t start = finish_t(finish_t(std::int32_t(before[t][place])) * finish_t(COMBINE_ONE));
        const finish_t total = finish_t(start + finish_t(sums.value[lane]));
        after[t][place] = saturate(shift_round_even(total, COMBINE_FRACTION), RESIDUAL_BITS, false);
      }
    }
    step_pair(t, o, tiles);
  }
  t = 0;
  j = 0;
FINISHED_LINE:
  for (int step = 0; step < count * lines; ++step) {
#pragma HLS PIPELINE II = 1
    line_t line;
  FINISHED_VALUE:
    for (int i = 0; i < LINE_VALUES; ++i) {
#pragma HLS UNROLL
      const int place = j * LINE_VALUES + i;
      const narrow_t value = place < int(layer.outputs) ? after[t][place] : narrow_t(0);
      line.byte[2 * i] = act_t(std::uint8_t(std::uint16_t(value)));
      line.byte[2 * i + 1] = act_t(value >> 8);
    }
    send_line(outgoing, layer, std::uint32_t((begin + t) * lines + j), line);
    step_pair(t, j, lines);
  }
}

}  // namespace

void store(std::uint32_t record, Stream<layer_t>& layers, Stream<tile_t>& tiles, Stream<result_t>& results,
           Stream<routed_t>& routed, Stream<std::uint32_t>& loaded, Stream<request_t>& requests,
           Stream<line_t>& residual_lines, Stream<outgoing_t>& outgoing) {
  wide_row_t ultra[some(ULTRA_ROWS)];
#pragma HLS AGGREGATE variable = ultra
#pragma HLS BIND_STORAGE variable = ultra type = ram_2p impl = uram
  wide_row_t block[some(BLOCK_ROWS)];
#pragma HLS AGGREGATE variable = block
#pragma HLS BIND_STORAGE variable = block type = ram_2p impl = bram
  bool touched[MAX_TOKENS];
  counters_t counters = {};
  job_t job = {};
  std::uint32_t jobs = 0;

LAYERS:
  for (layer_t layer = layers.read();; layer = layers.read()) {
    if (layer.kind == Kind::END) {
      counters.bytes_read += std::uint64_t(layer.commands_read) * COMMAND_BYTES;
      write_record(outgoing, record, jobs, layer, counters);
      break;
    }
    if (layer.kind == Kind::JOB_END) {
      write_job(outgoing, record, jobs, layer.job, job);
      ++jobs;
      job = {};
      continue;
    }
    const bool moe = layer.kind == Kind::MOE;
    const bool linear = layer.kind == Kind::LINEAR;
    routed_t summary;
    summary.experts = expert_t(1);
    summary.crc = job.queue_crc;
    ahead_t ahead = begin_lines(layer.residual, linear ? 0U : layer.output_stripes, layer.age, requests);
    if (moe) {
      summary = routed.read();
    UNTOUCHED:
      for (int token = 0; token < int(layer.tokens); ++token) {
#pragma HLS PIPELINE II = 1
        touched[token] = false;
      }
    }
    int unit = 0;
    bool last = false;
  TILES:
    while (!last) {
      const tile_t tile = tiles.read();
#pragma HLS ARRAY_PARTITION variable = tile.token complete
#pragma HLS ARRAY_PARTITION variable = tile.weight complete
      if (linear) {
        store_linear(layer, unit, tile, results, outgoing);
      } else {
        const int base = layer.kind == Kind::ACCUMULATE ? unit * int(layer.unit_tiles) : 0;
        combine(layer, tile, base, results, touched, ultra, block);
        if (tile.complete) {
          finish(layer, int(tile.token[0]), int(tile.count), ahead, requests, residual_lines, outgoing, ultra, block);
        }
      }
      unit += tile.last_of_unit ? 1 : 0;
      last = tile.last_of_layer;
    }
  FINISH:
    for (int begin = 0; moe && begin < int(layer.tokens); begin += T) {
      const int left = int(layer.tokens) - begin;
      finish(layer, begin, left < T ? left : T, ahead, requests, residual_lines, outgoing, ultra, block);
    }
    skip_lines(ahead, requests, residual_lines);
    const line_t nothing = {};
  PAD:
    for (std::uint32_t index = std::uint32_t(layer.tokens) * std::uint32_t(layer.output_lines);
         index < layer.output_stripes * BURST_BEATS; ++index) {
#pragma HLS PIPELINE II = 1
      send_line(outgoing, layer, index, nothing);
    }
    send_signal(outgoing, Outgoing::RETIRE);

    const std::uint64_t weight_bytes = std::uint64_t(loaded.read()) * STRIPE_BYTES;
    const std::uint64_t rows = layer.input_stripes + (linear ? 0U : layer.output_stripes);
    counters.weight_bytes += weight_bytes;
    counters.bytes_read += weight_bytes + rows * STRIPE_BYTES;
    counters.bytes_written += std::uint64_t(layer.output_stripes) * STRIPE_BYTES;
    counters.pairs += layer.pairs;
    counters.experts += std::uint64_t(summary.experts);
    counters.units += std::uint64_t(summary.experts) * layer.units;
    counters.macs += layer.macs;
    job.pairs += layer.pairs;
    job.experts += std::uint64_t(summary.experts);
    job.macs += layer.macs;
    job.queue_crc = summary.crc;
  }
  end_lines(requests);
  send_signal(outgoing, Outgoing::END);
}

}  // namespace m3vit
