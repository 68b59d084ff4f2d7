#include "load.h"

#include "lines.h"

namespace m3vit {

namespace {

struct slots_t {
  bool valid[WEIGHT_SLOTS];
  std::uint32_t stripe[WEIGHT_SLOTS];  // of what it holds
  uint<8> users[WEIGHT_SLOTS];         // uses of it that are not over
  int in_use;                          // sum of these
  int candidate;                       // slots are taken in turn
};

void release_one(slots_t& slots, Stream<slot_t>& freed) {
#pragma HLS INLINE
  const int slot = int(freed.read());
  slots.users[slot] = uint<8>(int(slots.users[slot]) - 1);
  --slots.in_use;
}

// A slot that nobody uses.
int free_slot(slots_t& slots, Stream<slot_t>& freed) {
  int slot = WEIGHT_SLOTS;
FREE_SLOT:
  while (slot == WEIGHT_SLOTS) {
  LOOK:
    for (int step = WEIGHT_SLOTS - 1; step >= 0; --step) {
#pragma HLS UNROLL
      const int other = (slots.candidate + step) % WEIGHT_SLOTS;
      if (slots.users[other] == uint<8>(0)) {
        slot = other;
      }
    }
    if (slot == WEIGHT_SLOTS) {
      release_one(slots, freed);
    }
  }
  slots.candidate = (slot + 1) % WEIGHT_SLOTS;
  return slot;
}

// The slot of an expert's unit that route found in one.
int resident_slot(const slots_t& slots, std::uint32_t stripe) {
#pragma HLS INLINE
  int slot = 0;
RESIDENT_SLOT:
  for (int other = WEIGHT_SLOTS - 1; other >= 0; --other) {
#pragma HLS UNROLL
    if (slots.valid[other] && slots.stripe[other] == stripe) {
      slot = other;
    }
  }
  return slot;
}

std::int32_t word_at(const act_t bytes[GROUP_BYTES], int offset) {
#pragma HLS INLINE
  const std::uint32_t low = std::uint8_t(bytes[offset]) | std::uint32_t(std::uint8_t(bytes[offset + 1])) << 8;
  const std::uint32_t high = std::uint8_t(bytes[offset + 2]) | std::uint32_t(std::uint8_t(bytes[offset + 3])) << 8;
  return std::int32_t(low | high << 16);
}

void load_gelu(int slot, ahead_t& ahead, Stream<request_t>& requests, Stream<line_t>& lines,
               act_t gelu[O][WEIGHT_SLOTS * GELU_BYTES]) {
  line_t bytes = {};
#pragma HLS ARRAY_PARTITION variable = bytes.byte complete
GELU_ENTRY:
  for (int entry = 0; entry < GELU_BYTES; ++entry) {
#pragma HLS PIPELINE II = 1
    if (entry % LINE_BYTES == 0) {
      bytes = take_line(ahead, requests, lines);
    }
  GELU_COPY:
    for (int lane = 0; lane < O; ++lane) {
#pragma HLS UNROLL
      gelu[lane][slot * GELU_BYTES + entry] = bytes.byte[entry % LINE_BYTES];
    }
  }
}

void load_group(int group, ahead_t& ahead, Stream<request_t>& requests, Stream<line_t>& lines,
                group_t groups[WEIGHT_SLOTS * SLOT_GROUPS]) {
  act_t bytes[GROUP_BYTES];
#pragma HLS ARRAY_PARTITION variable = bytes complete
GROUP_LINE:
  for (int line = 0; line < GROUP_LINES; ++line) {
#pragma HLS PIPELINE II = 1
    const line_t taken = take_line(ahead, requests, lines);
  GROUP_BYTE:
    for (int i = 0; i < LINE_BYTES; ++i) {
#pragma HLS UNROLL
      bytes[line * LINE_BYTES + i] = taken.byte[i];
    }
  }
  group_t parameters;
GROUP_LANE:
  for (int lane = 0; lane < O; ++lane) {
#pragma HLS UNROLL
    const int shift = bytes[O * BIAS_BYTES + lane * SHIFT_BYTES];
    parameters.bias[lane] = word_at(bytes, lane * BIAS_BYTES);
    // Lanes past the last output may hold anything.
    parameters.shift[lane] = shift_t(shift < SHIFT_MIN ? SHIFT_MIN : (shift > SHIFT_MAX ? SHIFT_MAX : shift));
  }
  groups[group] = parameters;
}

// One loop over the lines of all rows: a row begins in the cycle after the last line of the one before.
void load_rows(int row, int rows, ahead_t& ahead, Stream<request_t>& requests, Stream<line_t>& lines,
               weight_row_t weights[WEIGHT_SLOTS * SLOT_ROWS]) {
  weight_row_t values = {};
#pragma HLS ARRAY_PARTITION variable = values.value complete
  int part = 0;
ROW_LINE:
  for (int step = 0; step < rows * ROW_LINES; ++step) {
#pragma HLS PIPELINE II = 1
    const line_t taken = take_line(ahead, requests, lines);
  ROW_BYTE:
    for (int i = 0; i < LINE_BYTES; ++i) {
#pragma HLS UNROLL
      values.value[part * LINE_BYTES + i] = taken.byte[i];
    }
    if (part == ROW_LINES - 1) {
      weights[row] = values;
      ++row;
      part = 0;
    } else {
      ++part;
    }
  }
}

}  // namespace

void load(Stream<layer_t>& layers, Stream<order_t>& order, Stream<resident_t>& resident, Stream<request_t>& requests,
          Stream<line_t>& lines, Stream<slot_t>& freed, Stream<slot_t>& units, Stream<row_t>& filled,
          Stream<std::uint32_t>& loaded, weight_row_t weights[WEIGHT_SLOTS * SLOT_ROWS],
          group_t groups[WEIGHT_SLOTS * SLOT_GROUPS], act_t gelu[O][WEIGHT_SLOTS * GELU_BYTES]) {
  slots_t slots;
#pragma HLS ARRAY_PARTITION variable = slots.valid complete
#pragma HLS ARRAY_PARTITION variable = slots.stripe complete
#pragma HLS ARRAY_PARTITION variable = slots.users complete
FORGET:
  for (int slot = 0; slot < WEIGHT_SLOTS; ++slot) {
#pragma HLS UNROLL
    slots.valid[slot] = false;
    slots.stripe[slot] = 0;
    slots.users[slot] = uint<8>(0);
  }
  slots.in_use = 0;
  slots.candidate = 0;

LAYERS:
  for (layer_t layer = layers.read(); layer.kind != Kind::END; layer = layers.read()) {
  DRAIN_SLOTS:
    while (layer.no_prefetch && slots.in_use != 0) {
      release_one(slots, freed);
    }
    const bool moe = layer.kind == Kind::MOE;
    std::uint32_t stripes = 0;
    bool gate = moe;
    order_t next;
    next.expert = expert_t(0);
    next.resident = false;
    next.last = !moe;
  EXPERTS:
    while (true) {
      const int count = gate ? 1 : int(layer.units);
    UNITS:
      for (int unit = 0; unit < count; ++unit) {
        const std::uint32_t index = std::uint32_t(next.expert) * std::uint32_t(layer.units) + std::uint32_t(unit);
        const std::uint32_t stripe = gate ? layer.gate : layer.weights + index * layer.unit_stripes;
        const int tiles = gate ? int(layer.gate_tiles)
                               : int(unit == count - 1 ? layer.last_tiles : layer.unit_tiles);
        const int hidden_tiles = gate ? 0 : int(layer.hidden_tiles);
        int slot = 0;
        if (next.resident) {
        // As many tokens may come back unread as there are slots.
        BOUND:
          while (slots.in_use >= WEIGHT_SLOTS) {
            release_one(slots, freed);
          }
          slot = resident_slot(slots, stripe);
        } else {
          slot = free_slot(slots, freed);
          slots.valid[slot] = true;
          slots.stripe[slot] = stripe;
        }
        slots.users[slot] = uint<8>(int(slots.users[slot]) + 1);
        ++slots.in_use;
        units.write(slot_t(slot));

        const std::uint32_t size = next.resident ? 0U : (gate ? layer.gate_stripes : layer.unit_stripes);
        stripes += size;
        ahead_t ahead = begin_lines(stripe, size, layer.age, requests);
        if (!next.resident && hidden_tiles != 0) {
          load_gelu(slot, ahead, requests, lines, gelu);
        }
        int row = slot * SLOT_ROWS;
      TILES:
        for (int tile = 0; tile < hidden_tiles + tiles; ++tile) {
          const bool second = hidden_tiles != 0 && tile >= hidden_tiles;
          const int rows = int(second ? layer.hidden_beats : layer.input_beats);
          if (!next.resident) {
            load_group(slot * SLOT_GROUPS + tile, ahead, requests, lines, groups);
            load_rows(row, rows, ahead, requests, lines, weights);
          }
          filled.write(row_t(row));
          row += rows;
        }
        skip_lines(ahead, requests, lines);
      }
      if (gate && Schedule(layer.schedule) == Schedule::RESIDENT_FIRST) {
        resident_t held;
      HELD:
        for (int slot = 0; slot < WEIGHT_SLOTS; ++slot) {
#pragma HLS UNROLL
          held.valid[slot] = slots.valid[slot];
          held.stripe[slot] = slots.stripe[slot];
        }
        resident.write(held);
      }
      if (next.last) {
        break;
      }
      gate = false;
      next = order.read();
    }
    loaded.write(stripes);
  }
  end_lines(requests);
LEFT:
  while (slots.in_use != 0) {
    release_one(slots, freed);
  }
}

}  // namespace m3vit
