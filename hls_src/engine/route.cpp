#include "route.h"

namespace m3vit {

namespace {

constexpr std::uint32_t CRC_POLYNOMIAL = 0xEDB88320U;  // CRC-32 of IEEE 802.3, reflected

struct crc_map_t {  // what each bit of a CRC becomes; the map is linear over XOR
  std::uint32_t of_bit[32];
};

// `words` words of zeros further on.
constexpr crc_map_t crc_map(int words) {
  crc_map_t map = {};
  for (int bit = 0; bit < 32; ++bit) {
    std::uint32_t crc = std::uint32_t{1} << bit;
    for (int step = 0; step < 32 * words; ++step) {
      crc = (crc >> 1) ^ ((crc & 1U) != 0U ? CRC_POLYNOMIAL : 0U);
    }
    map.of_bit[bit] = crc;
  }
  return map;
}

constexpr crc_map_t ONE_WORD = crc_map(1);
constexpr crc_map_t TWO_WORDS = crc_map(2);

// A tree of XORs with constant masks, five deep, where the bits one after the other would be 32 steps per word.
std::uint32_t apply(const crc_map_t& map, std::uint32_t value) {
#pragma HLS INLINE
  std::uint32_t term[32];
#pragma HLS ARRAY_PARTITION variable = term complete
CRC_BIT:
  for (int bit = 0; bit < 32; ++bit) {
#pragma HLS UNROLL
    term[bit] = ((value >> bit) & 1U) != 0U ? map.of_bit[bit] : 0U;
  }
CRC_LEVEL:
  for (int level = 0; level < 5; ++level) {
#pragma HLS UNROLL
  CRC_XOR:
    for (int i = 0; i < (16 >> level); ++i) {
#pragma HLS UNROLL
      term[i] ^= term[i + (16 >> level)];
    }
  }
  return term[0];
}

// Whether every unit of an expert is in a slot.
bool in_slots(const layer_t& layer, int expert, const resident_t& held) {
  bool all = true;
UNIT_HELD:
  for (int unit = 0; unit < int(layer.units); ++unit) {
#pragma HLS PIPELINE II = 1
    const std::uint32_t index = std::uint32_t(expert) * std::uint32_t(layer.units) + std::uint32_t(unit);
    const std::uint32_t stripe = layer.weights + index * layer.unit_stripes;
    bool found = false;
  SLOT_HOLDS:
    for (int slot = 0; slot < WEIGHT_SLOTS; ++slot) {
#pragma HLS UNROLL
      found = found || (held.valid[slot] && held.stripe[slot] == stripe);
    }
    all = all && found;
  }
  return all;
}

// The next expert of the sequence.
void name(int expert, bool resident, int& count, int used, expert_t sequence[MAX_EXPERTS], Stream<order_t>& order) {
#pragma HLS INLINE
  order_t next;
  next.expert = expert_t(expert);
  next.resident = resident;
  next.last = count == used - 1;
  order.write(next);
  sequence[count] = expert_t(expert);
  ++count;
}

}  // namespace

void route(Stream<layer_t>& layers, Stream<pick_t>& picks, Stream<resident_t>& resident, Stream<order_t>& order,
           Stream<entry_t>& entries, Stream<routed_t>& routed) {
  node_t next[NODES];  // a node is a token and a rank
  weight_t weight[NODES];
#pragma HLS BIND_STORAGE variable = next type = ram_2p impl = bram
#pragma HLS BIND_STORAGE variable = weight type = ram_2p impl = bram
  node_t head[MAX_EXPERTS];
  node_t tail[MAX_EXPERTS];
  token_t lengths[MAX_EXPERTS];
#pragma HLS BIND_STORAGE variable = head type = ram_2p impl = lutram
#pragma HLS BIND_STORAGE variable = tail type = ram_2p impl = lutram
#pragma HLS BIND_STORAGE variable = lengths type = ram_2p impl = lutram
  expert_t sequence[MAX_EXPERTS];
  bool named[MAX_EXPERTS];
  std::uint32_t crc = 0;

LAYERS:
  for (layer_t layer = layers.read(); layer.kind != Kind::END; layer = layers.read()) {
    const int experts = int(layer.experts);
    const int top_k = int(layer.top_k);
    const auto schedule = Schedule(layer.schedule);
    if (layer.starts_crc) {
      crc = 0;
    }
  CLEAR:
    for (int expert = 0; expert < experts; ++expert) {
#pragma HLS PIPELINE II = 1
      lengths[expert] = token_t(0);
      named[expert] = false;
    }
    int used = 0;  // experts with a queue
    std::uint32_t running = ~crc;
    int token = 0;
    int rank = 0;
  APPEND:
    for (std::uint32_t pair = 0; pair < layer.pairs; ++pair) {
      // With top-1 the next pick may be of the same expert, whose length and tail must be there by then: two cycles
      // from a read to the next one of the same place, so no dependence is declared false.
#pragma HLS PIPELINE II = 2
      const pick_t pick = picks.read();
      const int expert = int(pick.expert);
      const int length = int(lengths[expert]);
      const int node = token * MAX_TOP_K + rank;
      weight[node] = pick.weight;
      if (length == 0) {
        head[expert] = node_t(node);
        ++used;
      } else {
        next[int(tail[expert])] = node_t(node);
      }
      tail[expert] = node_t(node);
      lengths[expert] = token_t(length + 1);
      // The words' own share is outside the recurrence: only the map of the CRC so far is in it.
      const std::uint32_t place = std::uint32_t(expert) | std::uint32_t(token) << 16;
      const std::uint32_t words = apply(TWO_WORDS, place) ^ apply(ONE_WORD, std::uint32_t(pick.weight));
      running = apply(TWO_WORDS, running) ^ words;
      if (rank == top_k - 1) {
        rank = 0;
        ++token;
      } else {
        ++rank;
      }
    }
    crc = ~running;
    routed_t summary;
    summary.experts = expert_t(used);
    summary.crc = crc;
    routed.write(summary);

    resident_t held = {};
    if (schedule == Schedule::RESIDENT_FIRST) {
      held = resident.read();
    }
    // ---- order. An expert is named as soon as it is found: load need not wait for the end of the search.
    int count = 0;
    if (schedule == Schedule::LONGEST_FIRST) {
    LONGEST:
      while (count < used) {
        int longest = 0;
        int longest_length = 0;
      SCAN_LONGEST:
        for (int expert = 0; expert < experts; ++expert) {
#pragma HLS PIPELINE II = 1
          const int length = named[expert] ? 0 : int(lengths[expert]);
          if (length > longest_length) {
            longest = expert;
            longest_length = length;
          }
        }
        named[longest] = true;
        name(longest, false, count, used, sequence, order);
      }
    } else {
      if (schedule == Schedule::RESIDENT_FIRST) {
      SCAN_RESIDENT:
        for (int expert = 0; expert < experts; ++expert) {
          if (lengths[expert] != token_t(0) && in_slots(layer, expert, held)) {
            named[expert] = true;
            name(expert, true, count, used, sequence, order);
          }
        }
      }
    SCAN:
      for (int expert = 0; expert < experts; ++expert) {
#pragma HLS PIPELINE II = 1
        if (lengths[expert] != token_t(0) && !named[expert]) {
          name(expert, false, count, used, sequence, order);
        }
      }
    }
    // ---- walks
  WALK_EXPERT:
    for (int i = 0; i < used; ++i) {
      const int expert = int(sequence[i]);
      const int length = int(lengths[expert]);
    WALK_UNIT:
      for (int unit = 0; unit < int(layer.units); ++unit) {
        int node = int(head[expert]);
      WALK:
        for (int step = 0; step < length; ++step) {
          // The next node's address comes out of the list: two cycles per entry, of T and more beats that it computes.
#pragma HLS PIPELINE II = 2
          entry_t entry;
          entry.token = token_t(node / MAX_TOP_K);
          entry.weight = weight[node];
          entry.last = step == length - 1;
          entry.last_expert = i == used - 1;
          entries.write(entry);
          node = entry.last ? node : int(next[node]);
        }
      }
    }
  }
}

}  // namespace m3vit
