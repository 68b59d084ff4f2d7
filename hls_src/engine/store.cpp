#include "store.h"

#include "lines.h"
#include "numerics.h"
#include "output.h"
#include "record.h"

namespace m3vit {

namespace {

struct wide_row_t {
  wide_t value[O];
};

// Reads the rows of one tile into `packed`, lanes past the last output as zeros, and writes their lines.
void store_linear(Port& write0, Port& write1, writer_t& writer, gathered_t& gathered, const layer_t& layer, int unit,
                  const tile_t& tile, Stream<result_t>& results) {
  act_t packed[T][UNIT_OUTPUT_BYTES];
#pragma HLS ARRAY_PARTITION variable = packed cyclic factor = LINE_BYTES dim = 2
  const int unit_bytes = int(layer.unit_tiles) * O;
  const int left = int(layer.outputs) - unit * unit_bytes;
  const int bytes = left < int(tile.tiles) * O ? left : int(tile.tiles) * O;
  const int lines = ceil_div(bytes, LINE_BYTES);
LINEAR_TILE:
  for (int o = 0; o < int(tile.tiles); ++o) {
  LINEAR_TOKEN:
    for (int t = 0; t < int(tile.count); ++t) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_FLATTEN
      const result_t row = results.read();
    LINEAR_LANE:
      for (int lane = 0; lane < O; ++lane) {
#pragma HLS UNROLL
        packed[t][o * O + lane] = act_t(row.value[lane]);
      }
    }
  }
LINEAR_ROW:
  for (int t = 0; t < int(tile.count); ++t) {
    const std::uint32_t first = std::uint32_t(tile.token[t]) * std::uint32_t(layer.output_lines) +
                                std::uint32_t(unit * unit_bytes / LINE_BYTES);
  LINEAR_LINE:
    for (int j = 0; j < lines; ++j) {
      line_t line;
    LINEAR_BYTE:
      for (int i = 0; i < LINE_BYTES; ++i) {
#pragma HLS UNROLL
        const int place = j * LINE_BYTES + i;
        line.byte[i] = place < bytes ? packed[t][place] : act_t(0);
      }
      put_line(write0, write1, writer, gathered, layer.output, first + std::uint32_t(j), line);
    }
  }
}

// `base`: the output tile that the unit begins with; units of an ACCUMULATE layer hold different outputs.
void combine(const layer_t& layer, const tile_t& tile, int base, Stream<result_t>& results, bool touched[MAX_TOKENS],
             wide_row_t wide[MAX_TOKENS * WIDE_TILES]) {
  bool first[T];
#pragma HLS ARRAY_PARTITION variable = first complete
FIRST:
  for (int t = 0; t < T; ++t) {
    const int token = int(tile.token[t]);
    first[t] = tile.overwrite || (layer.kind == Kind::MOE && !touched[token]);
    if (t < int(tile.count)) {
      touched[token] = true;
    }
  }
COMBINE_TILE:
  for (int o = 0; o < int(tile.tiles); ++o) {
  COMBINE_TOKEN:
    for (int t = 0; t < int(tile.count); ++t) {
      // Tokens of a tile differ, and so do its output tiles: no row is touched twice before the loop is over.
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_FLATTEN
#pragma HLS DEPENDENCE variable = wide inter false
      const result_t row = results.read();
      const int address = int(tile.token[t]) * WIDE_TILES + base + o;
      wide_row_t sums = wide[address];
    COMBINE_LANE:
      for (int lane = 0; lane < O; ++lane) {
#pragma HLS UNROLL
        const wide_t share = wide_t(wide_t(std::int32_t(row.value[lane])) * wide_t(std::int64_t(tile.weight[t])));
        sums.value[lane] = first[t] ? share : wide_t(sums.value[lane] + share);
      }
      wide[address] = sums;
    }
  }
}

// Tokens begin … begin + count - 1 are complete: adds their residual rows, rounds, writes.
void finish(Port& write0, Port& write1, writer_t& writer, gathered_t& gathered, const layer_t& layer, int begin,
            int count, ahead_t& ahead, Stream<request_t>& requests, Stream<line_t>& residual_lines,
            const wide_row_t wide[MAX_TOKENS * WIDE_TILES]) {
  narrow_t row[ROW_VALUES];
#pragma HLS ARRAY_PARTITION variable = row cyclic factor = LINE_VALUES
  const int lines = int(layer.output_lines);
  const int tiles = ceil_div(int(layer.outputs), O);
FINISH_TOKEN:
  for (int token = begin; token < begin + count; ++token) {
  RESIDUAL_LINE:
    for (int j = 0; j < lines; ++j) {
#pragma HLS PIPELINE II = 1
      const line_t line = take_line(ahead, requests, residual_lines);
    RESIDUAL_VALUE:
      for (int i = 0; i < LINE_VALUES; ++i) {
#pragma HLS UNROLL
        const int low = std::uint8_t(line.byte[2 * i]);
        row[j * LINE_VALUES + i] = narrow_t(line.byte[2 * i + 1] * 256 + low);
      }
    }
  FINISH_TILE:
    for (int o = 0; o < tiles; ++o) {
#pragma HLS PIPELINE II = 1
      const wide_row_t sums = wide[token * WIDE_TILES + o];
    FINISH_LANE:
      for (int lane = 0; lane < O; ++lane) {
#pragma HLS UNROLL
        const int place = o * O + lane;
        if (place < int(layer.outputs)) {
          const finish_t start = finish_t(finish_t(std::int32_t(row[place])) * finish_t(COMBINE_ONE));
          const finish_t total = finish_t(start + finish_t(sums.value[lane]));
          row[place] = saturate(shift_round_even(total, COMBINE_FRACTION), RESIDUAL_BITS, false);
        }
      }
    }
  OUTPUT_LINE:
    for (int j = 0; j < lines; ++j) {
      line_t line;
    OUTPUT_VALUE:
      for (int i = 0; i < LINE_VALUES; ++i) {
#pragma HLS UNROLL
        const int place = j * LINE_VALUES + i;
        const narrow_t value = place < int(layer.outputs) ? row[place] : narrow_t(0);
        line.byte[2 * i] = act_t(std::uint8_t(std::uint16_t(value)));
        line.byte[2 * i + 1] = act_t(value >> 8);
      }
      put_line(write0, write1, writer, gathered, layer.output, std::uint32_t(token * lines + j), line);
    }
  }
}

}  // namespace

void store(Port write0, Port write1, std::uint64_t arena0, std::uint64_t arena1, std::uint32_t record,
           Stream<layer_t>& layers, Stream<tile_t>& tiles, Stream<result_t>& results, Stream<routed_t>& routed,
           Stream<std::uint32_t>& loaded, Stream<request_t>& requests, Stream<line_t>& residual_lines,
           Stream<signal_t>& retired) {
  wide_row_t wide[MAX_TOKENS * WIDE_TILES];
#pragma HLS AGGREGATE variable = wide
#pragma HLS BIND_STORAGE variable = wide type = ram_2p impl = uram
  bool touched[MAX_TOKENS];
  gathered_t gathered;
  gathered.stripe = 0;
  gathered.first = 0;
  gathered.count = 0;
  writer_t writer = {{arena0, arena1}, {0, 0}};
  counters_t counters = {};
  job_t job = {};
  std::uint32_t jobs = 0;

LAYERS:
  for (layer_t layer = layers.read();; layer = layers.read()) {
    if (layer.kind == Kind::END) {
      counters.bytes_read += std::uint64_t(layer.commands_read) * COMMAND_BYTES;
      write_record(write0, write1, writer, record, jobs, layer, counters);
      break;
    }
    if (layer.kind == Kind::JOB_END) {
      write_job(write0, writer, record, jobs, layer.job, job);
      ++jobs;
      job = {};
      continue;
    }
    const bool moe = layer.kind == Kind::MOE;
    const bool linear = layer.kind == Kind::LINEAR;
    routed_t summary;
    summary.experts = expert_t(1);
    summary.crc = job.queue_crc;
    ahead_t ahead = begin_lines(layer.residual, linear ? 0U : layer.output_stripes, layer.age);
    if (moe) {
      summary = routed.read();
    UNTOUCHED:
      for (int token = 0; token < int(layer.tokens); ++token) {
#pragma HLS PIPELINE II = 1
        touched[token] = false;
      }
    }
    ask_lines(ahead, requests);
    int unit = 0;
    bool last = false;
  TILES:
    while (!last) {
      const tile_t tile = tiles.read();
      if (linear) {
        store_linear(write0, write1, writer, gathered, layer, unit, tile, results);
      } else {
        const int base = layer.kind == Kind::ACCUMULATE ? unit * int(layer.unit_tiles) : 0;
        combine(layer, tile, base, results, touched, wide);
        if (tile.complete) {
          finish(write0, write1, writer, gathered, layer, int(tile.token[0]), int(tile.count), ahead, requests,
                 residual_lines, wide);
        }
      }
      unit += tile.last_of_unit ? 1 : 0;
      last = tile.last_of_layer;
    }
    if (moe) {
      finish(write0, write1, writer, gathered, layer, 0, int(layer.tokens), ahead, requests, residual_lines, wide);
    }
    skip_lines(ahead, requests, residual_lines);
    const line_t nothing = {};
  PAD:
    for (std::uint32_t index = std::uint32_t(layer.tokens) * std::uint32_t(layer.output_lines);
         index < layer.output_stripes * BURST_BEATS; ++index) {
      put_line(write0, write1, writer, gathered, layer.output, index, nothing);
    }
    flush(write0, write1, writer, gathered);
    settle(write0, write1, writer);

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
    retired.write(signal_t(1));
  }
  end_lines(requests);
}

}  // namespace m3vit
