#include "route.h"

namespace m3vit {

namespace {

constexpr std::uint32_t CRC_POLYNOMIAL = 0xEDB88320U;  // CRC-32 of IEEE 802.3, reflected

std::uint32_t crc_word(std::uint32_t crc, std::uint32_t word) {
#pragma HLS INLINE
  crc ^= word;
CRC_BIT:
  for (int bit = 0; bit < 32; ++bit) {
#pragma HLS UNROLL
    crc = (crc >> 1) ^ ((crc & 1U) != 0U ? CRC_POLYNOMIAL : 0U);
  }
  return crc;
}

struct queues_t {
  node_t head[MAX_EXPERTS];
  node_t tail[MAX_EXPERTS];
  token_t length[MAX_EXPERTS];
};

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

}  // namespace

void route(Stream<layer_t>& layers, Stream<pick_t>& picks, Stream<resident_t>& resident, Stream<order_t>& order,
           Stream<entry_t>& entries, Stream<routed_t>& routed) {
  node_t next[NODES];
  weight_t weight[NODES];
#pragma HLS BIND_STORAGE variable = next type = ram_2p impl = bram
#pragma HLS BIND_STORAGE variable = weight type = ram_2p impl = bram
  queues_t queues;
  order_t sequence[MAX_EXPERTS];
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
      queues.length[expert] = token_t(0);
      named[expert] = false;
    }
    int used = 0;  // experts with a queue
    std::uint32_t running = ~crc;
  APPEND_TOKEN:
    for (int token = 0; token < int(layer.tokens); ++token) {
    APPEND_RANK:
      for (int rank = 0; rank < top_k; ++rank) {
        // Experts of one token differ, so a length is read again top_k picks later at the earliest, or 1 with top-1:
        // there the scheduler must see the dependence, so none is declared false.
#pragma HLS PIPELINE II = 1
        const pick_t pick = picks.read();
        const int expert = int(pick.expert);
        const int node = token * top_k + rank;
        const int length = int(queues.length[expert]);
        weight[node] = pick.weight;
        if (length == 0) {
          queues.head[expert] = node_t(node);
          ++used;
        } else {
          next[int(queues.tail[expert])] = node_t(node);
        }
        queues.tail[expert] = node_t(node);
        queues.length[expert] = token_t(length + 1);
        running = crc_word(running, std::uint32_t(expert) | std::uint32_t(token) << 16);
        running = crc_word(running, std::uint32_t(pick.weight));
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
    // ---- order. RESIDENT_FIRST scans twice, LONGEST_FIRST once per expert that has a queue, INDEX once.
    int count = 0;
    bool residents = schedule == Schedule::RESIDENT_FIRST;  // the scan at hand takes resident experts only
  SCANS:
    while (count < used) {
      int longest = 0;
      int longest_length = 0;
    SCAN:
      for (int expert = 0; expert < experts; ++expert) {
        const int length = int(queues.length[expert]);
        const bool there = length != 0 && !named[expert];
        if (schedule == Schedule::LONGEST_FIRST) {
          if (there && length > longest_length) {
            longest = expert;
            longest_length = length;
          }
        } else if (there && (!residents || in_slots(layer, expert, held))) {
          sequence[count].expert = expert_t(expert);
          sequence[count].resident = residents;
          ++count;
          named[expert] = true;
        }
      }
      if (schedule == Schedule::LONGEST_FIRST) {
        sequence[count].expert = expert_t(longest);
        sequence[count].resident = false;
        ++count;
        named[longest] = true;
      }
      residents = false;
    }
  NAME:
    for (int i = 0; i < used; ++i) {
#pragma HLS PIPELINE II = 1
      order_t name = sequence[i];
      name.last = i == used - 1;
      order.write(name);
    }
    // ---- walks
  WALK_EXPERT:
    for (int i = 0; i < used; ++i) {
      const int expert = int(sequence[i].expert);
      const int length = int(queues.length[expert]);
    WALK_UNIT:
      for (int unit = 0; unit < int(layer.units); ++unit) {
        int node = int(queues.head[expert]);
      WALK:
        for (int step = 0; step < length; ++step) {
          // The next node's address comes out of the list: two cycles per entry, of T and more beats that it computes.
#pragma HLS PIPELINE II = 2
          entry_t entry;
          entry.token = token_t(node / top_k);
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
