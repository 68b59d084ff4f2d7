#include "dispatch.h"

#include "rows.h"

namespace m3vit {

namespace {

constexpr int STEP = T > LINE_BEATS ? T : LINE_BEATS;  // cycles per line of every token

int wrapped(int line) {
#pragma HLS INLINE
  return line >= STORE_LINES ? line - STORE_LINES : line;
}

// Sends the inputs of `count` tokens whose rows begin at `place`; zeros for the others. Not inlined: its registers, a
// line of every token twice, exist once for all callers.
void gather(const int place[T], int count, int lines, int beats, Stream<operand_t>& operands,
            const line_t store[STORE_LINES]) {
#pragma HLS INLINE off
  line_t block[2][T];
#pragma HLS ARRAY_PARTITION variable = block complete dim = 0
GATHER_LINE:
  for (int line = 0; line <= lines; ++line) {
  GATHER_STEP:
    for (int step = 0; step < STEP; ++step) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_FLATTEN
      if (line < lines && step < T) {
        line_t bytes = {};
        if (step < count) {
          bytes = store[wrapped(place[step] + line)];
        }
        block[line % 2][step] = bytes;
      }
      const int beat = (line - 1) * LINE_BEATS + step;
      if (line > 0 && step < LINE_BEATS && beat < beats) {
        operand_t operand;
      OPERAND_TOKEN:
        for (int t = 0; t < T; ++t) {
#pragma HLS UNROLL
        OPERAND_INPUT:
          for (int i = 0; i < I; ++i) {
#pragma HLS UNROLL
            operand.value[t][i] = block[(line - 1) % 2][t].byte[step * I + i];
          }
        }
        operands.write(operand);
      }
    }
  }
}

tile_t plain_tile(const layer_t& layer, Sink sink, int slot) {
#pragma HLS INLINE
  tile_t tile = {};
  tile.sink = sink;
  tile.narrow = layer.narrow;
  tile.slot = slot_t(slot);
  tile.input_beats = layer.input_beats;
  tile.hidden_beats = sink == Sink::GATE ? beats_t(0) : layer.hidden_beats;
  tile.hidden_tiles = sink == Sink::GATE ? tiles_t(0) : layer.hidden_tiles;
  tile.tiles = sink == Sink::GATE ? layer.gate_tiles : layer.unit_tiles;
  return tile;
}

// Every token of the layer, in order, through the unit in `slot`. `first`, `last`: unit of a dense layer.
void in_order(const layer_t& layer, Sink sink, int slot, bool first, bool last, int base, Stream<signal_t>& ready,
              Stream<std::uint32_t>& freed, Stream<tile_t>& tiles, Stream<operand_t>& operands,
              const line_t store[STORE_LINES]) {
#pragma HLS INLINE off
  const int lines = int(layer.input_lines);
  const int tokens = int(layer.tokens);
  int cursor = base;
IN_ORDER:
  for (int begin = 0; begin < tokens; begin += T) {
    const int count = tokens - begin < T ? tokens - begin : T;
    tile_t tile = plain_tile(layer, sink, slot);
#pragma HLS ARRAY_PARTITION variable = tile.token complete
#pragma HLS ARRAY_PARTITION variable = tile.weight complete
    tile.tiles = last && sink != Sink::GATE ? layer.last_tiles : tile.tiles;
    tile.follow_load = begin == 0;
    tile.last_of_unit = begin + T >= tokens;
    tile.last_of_layer = tile.last_of_unit && last && sink != Sink::GATE;
    tile.overwrite = first || layer.kind == Kind::ACCUMULATE;
    tile.complete = last;
    tile.count = uint<COUNT_BITS>(count);
    int place[T];
#pragma HLS ARRAY_PARTITION variable = place complete
  PLACES:
    for (int t = 0; t < T; ++t) {
#pragma HLS PIPELINE II = 1
      tile.token[t] = token_t(t < count ? begin + t : 0);
      tile.weight[t] = weight_t(COMBINE_ONE);
      place[t] = cursor;
      cursor = t < count ? wrapped(cursor + lines) : cursor;
    }
    if (first) {
      ready.read();
    }
    tiles.write(tile);
    gather(place, count, lines, int(layer.input_beats), operands, store);
    if (streams_past(layer)) {
      freed.write(std::uint32_t(count * lines));
    }
  }
}

}  // namespace

void dispatch(Stream<layer_t>& layers, Stream<slot_t>& units, Stream<entry_t>& entries, Stream<signal_t>& ready,
              Stream<std::uint32_t>& freed, Stream<tile_t>& tiles, Stream<operand_t>& operands,
              const line_t store[STORE_LINES]) {
  int base = 0;  // first line of the layer's rows
LAYERS:
  for (layer_t layer = layers.read(); layer.kind != Kind::END; layer = layers.read()) {
    const bool moe = layer.kind == Kind::MOE;
    const int lines = int(layer.input_lines);
    const int unit_count = int(layer.units);
    if (moe) {
      in_order(layer, Sink::GATE, int(units.read()), true, true, base, ready, freed, tiles, operands, store);
      bool last_expert = false;
    EXPERTS:
      while (!last_expert) {
      UNITS:
        for (int unit = 0; unit < unit_count; ++unit) {
          const int slot = int(units.read());
          bool over = false;
          bool follow_load = true;
        QUEUE:
          while (!over) {
            tile_t tile = plain_tile(layer, Sink::WIDE, slot);
#pragma HLS ARRAY_PARTITION variable = tile.token complete
#pragma HLS ARRAY_PARTITION variable = tile.weight complete
            int place[T];
#pragma HLS ARRAY_PARTITION variable = place complete
            int count = 0;
          TAKE:
            for (int t = 0; t < T; ++t) {
#pragma HLS PIPELINE II = 1
              place[t] = base;
              tile.token[t] = token_t(0);
              tile.weight[t] = weight_t(0);
              if (!over) {
                const entry_t entry = entries.read();
                place[t] = wrapped(base + int(entry.token) * lines);
                tile.token[t] = entry.token;
                tile.weight[t] = entry.weight;
                over = entry.last;
                last_expert = entry.last_expert;
                count = t + 1;
              }
            }
            tile.follow_load = follow_load;
            tile.last_of_unit = over;
            tile.last_of_layer = over && last_expert && unit == unit_count - 1;
            tile.count = uint<COUNT_BITS>(count);
            follow_load = false;
            tiles.write(tile);
            gather(place, count, lines, int(layer.input_beats), operands, store);
          }
        }
      }
    } else {
      const Sink sink = layer.kind == Kind::LINEAR ? Sink::LINEAR : Sink::WIDE;
    DENSE_UNITS:
      for (int unit = 0; unit < unit_count; ++unit) {
        in_order(layer, sink, int(units.read()), unit == 0, unit == unit_count - 1, base, ready, freed, tiles, operands,
                 store);
      }
    }
    if (!streams_past(layer)) {
      freed.write(std::uint32_t(int(layer.tokens) * lines));
    }
    base = (base + int(layer.tokens) * lines) % STORE_LINES;
  }
  tile_t end = {};
  end.sink = Sink::END;
  tiles.write(end);
}

}  // namespace m3vit
