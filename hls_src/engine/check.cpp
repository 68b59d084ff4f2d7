#include "check.h"

namespace m3vit {

namespace {

constexpr int LOW_BIT = O & -O;  // lines are a power of two of bytes
constexpr int LINE_TILES_INT8 = LOW_BIT >= LINE_BYTES ? 1 : LINE_BYTES / LOW_BIT;
constexpr int LINE_TILES_INT16 = 2 * LOW_BIT >= LINE_BYTES ? 1 : LINE_BYTES / (2 * LOW_BIT);

constexpr std::uint32_t mask_of(const Field& field, int word) {
  return field.word == word ? (field.bits == 32 ? 0xffffffffU : ((1U << field.bits) - 1U) << field.low) : 0U;
}

// Bits of a word that belong to a field.
constexpr std::uint32_t used_bits(int word) {
  return mask_of(FIELD_OPCODE, word) | mask_of(FIELD_FLAGS, word) | mask_of(FIELD_SCHEDULE, word) |
         mask_of(FIELD_TOP_K, word) | mask_of(FIELD_GATE_SHIFT, word) | mask_of(FIELD_JOB, word) |
         mask_of(FIELD_LAYER, word) | mask_of(FIELD_TOKENS, word) | mask_of(FIELD_EXPERTS, word) |
         mask_of(FIELD_INPUTS, word) | mask_of(FIELD_OUTPUTS, word) | mask_of(FIELD_HIDDEN, word) |
         mask_of(FIELD_UNITS, word) | mask_of(FIELD_TILES_PER_UNIT, word) | mask_of(FIELD_UNIT_BYTES, word) |
         mask_of(FIELD_WEIGHTS, word) | mask_of(FIELD_GATE, word) | mask_of(FIELD_INPUT, word) |
         mask_of(FIELD_RESIDUAL, word) | mask_of(FIELD_OUTPUT, word) | mask_of(FIELD_WEIGHT_SOURCE, word);
}
static_assert(used_bits(0) == 0xffffffffU && used_bits(COMMAND_RESERVED_WORD) == 0, "fields as the command has them");

constexpr std::uint32_t RESERVED[COMMAND_WORDS] = {
    ~used_bits(0), ~used_bits(1), ~used_bits(2),  ~used_bits(3),  ~used_bits(4),  ~used_bits(5),
    ~used_bits(6), ~used_bits(7), ~used_bits(8),  ~used_bits(9),  ~used_bits(10), ~used_bits(11),
    ~used_bits(12), ~used_bits(13), ~used_bits(14), ~used_bits(15),
};
static_assert(COMMAND_WORDS == 16, "RESERVED has an entry per word");

static_assert(FIELD_UNITS.bits <= 8 && FIELD_SCHEDULE.bits <= 8 && FIELD_GATE_SHIFT.bits <= 8, "bytes of layer_t");
static_assert(FIELD_JOB.bits <= 16 && FIELD_OUTPUTS.bits <= 16 && FIELD_TOP_K.bits <= 4, "fields of layer_t");

// A field of at most 32 bits as it stands. Counts that follow have 32 bits and do not overflow where no rule is broken;
// bytes and multiply-accumulates have 64. So no divider is wider than 32 bits.
std::uint32_t value(const command_t& command, const Field& field) {
#pragma HLS INLINE
  return std::uint32_t(field_value(command.word[field.word], field));
}

std::uint32_t divide_up(std::uint32_t dividend, std::uint32_t divisor) { return (dividend + divisor - 1) / divisor; }

std::uint64_t bytes_of(std::uint32_t stripes) { return std::uint64_t(stripes) * STRIPE_BYTES; }

}  // namespace

bool is_command(const command_t& command) {
  const auto opcode = Opcode(value(command, FIELD_OPCODE));
  bool known = false;
  switch (opcode) {
    case Opcode::END:
    case Opcode::JOB_END:
    case Opcode::BARRIER:
    case Opcode::LINEAR:
    case Opcode::ACCUMULATE:
    case Opcode::MLP:
    case Opcode::MOE:
      known = true;
      break;
    default:  // NORM, ATTENTION, CONV3X3 are reserved
      known = false;
      break;
  }
  std::uint32_t foreign = value(command, FIELD_FLAGS) & ~(FLAG_NARROW | FLAG_NO_PREFETCH);
RESERVED_WORDS:
  for (int word = 0; word < COMMAND_WORDS; ++word) {
#pragma HLS UNROLL
    foreign |= command.word[word] & RESERVED[word];
  }
  return known && foreign == 0;
}

verdict_t check(const command_t& command, layer_t& layer) {
  const auto opcode = Opcode(value(command, FIELD_OPCODE));
  const bool linear = opcode == Opcode::LINEAR;
  const bool moe = opcode == Opcode::MOE;
  const bool with_hidden = moe || opcode == Opcode::MLP;
  const std::uint32_t tokens = value(command, FIELD_TOKENS);
  const std::uint32_t inputs = value(command, FIELD_INPUTS);
  const std::uint32_t outputs = value(command, FIELD_OUTPUTS);
  const std::uint32_t hidden = value(command, FIELD_HIDDEN);
  const std::uint32_t units = value(command, FIELD_UNITS);
  const std::uint32_t unit_tiles = value(command, FIELD_TILES_PER_UNIT);
  const std::uint32_t experts = moe ? value(command, FIELD_EXPERTS) : 1U;
  const std::uint32_t top_k = moe ? value(command, FIELD_TOP_K) : 1U;
  const std::uint32_t schedule = value(command, FIELD_SCHEDULE);
  const int gate_shift = int(value(command, FIELD_GATE_SHIFT));

  // ---- shape, in the order of accel/limits.py; a divisor below is 0 only where an earlier rule is broken
  const std::uint32_t tiles = divide_up(outputs, O);
  const std::uint32_t some_units = units == 0 ? 1U : units;
  const std::uint32_t rough_share = divide_up(tiles, some_units);
  const std::uint32_t share = linear ? divide_up(rough_share, LINE_TILES_INT8) * LINE_TILES_INT8
                                     : divide_up(rough_share, LINE_TILES_INT16) * LINE_TILES_INT16;
  const std::uint32_t expected_tiles = with_hidden || units == 1 ? tiles : share;
  const std::uint32_t before_last = (some_units - 1) * unit_tiles;
  const std::uint32_t hidden_tiles = divide_up(hidden, O);
  const std::uint32_t input_beats = inputs / I;
  const std::uint32_t hidden_beats = hidden / I;
  const std::uint32_t slice_tiles = tiles < unit_tiles ? tiles : unit_tiles;
  const std::uint32_t second_tiles = with_hidden ? tiles : slice_tiles;
  const std::uint32_t second_beats = with_hidden ? hidden_beats : input_beats;
  const std::uint32_t rows = hidden_tiles * input_beats + second_tiles * second_beats;
  const std::uint32_t gate_tiles = moe ? divide_up(experts, O) : 0U;
  const std::uint32_t gate_rows = gate_tiles * input_beats;
  const std::uint32_t most_units = moe ? MAX_UNITS_MOE : (with_hidden ? MAX_UNITS_MLP : 255);
  const std::uint32_t most_top_k = experts < MAX_TOP_K ? experts : std::uint32_t(MAX_TOP_K);
  const Field& too_large = with_hidden ? FIELD_HIDDEN : FIELD_TILES_PER_UNIT;

  const std::uint32_t unit_lines = (with_hidden ? GELU_LINES : 0) + (hidden_tiles + second_tiles) * GROUP_LINES +
                                   rows * ROW_LINES;
  const std::uint32_t unit_stripes = divide_up(unit_lines, BURST_BEATS);
  const std::uint32_t gate_stripes = divide_up(gate_tiles * GROUP_LINES + gate_rows * ROW_LINES, BURST_BEATS);
  const std::uint32_t input_lines = divide_up(inputs, LINE_BYTES);
  const std::uint32_t output_lines = divide_up(outputs * (linear ? 1U : 2U), LINE_BYTES);
  const std::uint32_t input_stripes = divide_up(tokens * input_lines, BURST_BEATS);
  const std::uint32_t output_stripes = divide_up(tokens * output_lines, BURST_BEATS);

  const std::uint32_t weights = value(command, FIELD_WEIGHTS);
  const std::uint32_t gate = value(command, FIELD_GATE);
  const std::uint32_t input = value(command, FIELD_INPUT);
  const std::uint32_t residual = value(command, FIELD_RESIDUAL);
  const std::uint32_t output = value(command, FIELD_OUTPUT);
  const std::uint64_t memory = std::uint64_t{1} << 32;  // offsets have 32 bits
  const std::uint64_t weight_bytes = std::uint64_t(experts * units) * bytes_of(unit_stripes);

  verdict_t verdict = {ErrorCode::NONE, 0};
  if (value(command, FIELD_WEIGHT_SOURCE) != 0) {
    verdict = {ErrorCode::OPCODE, FIELD_WEIGHT_SOURCE.index};
  } else if (tokens < 1 || tokens > MAX_TOKENS) {
    verdict = {ErrorCode::SHAPE, FIELD_TOKENS.index};
  } else if (inputs < 1 || inputs > MAX_INPUTS || inputs % I != 0) {
    verdict = {ErrorCode::SHAPE, FIELD_INPUTS.index};
  } else if (inputs > MAX_WIDTH && (with_hidden || units != 1)) {
    verdict = {ErrorCode::SHAPE, FIELD_INPUTS.index};
  } else if (outputs < 1 || (!linear && outputs > MAX_WIDTH)) {
    verdict = {ErrorCode::SHAPE, FIELD_OUTPUTS.index};
  } else if (units < 1 || units > most_units) {
    verdict = {ErrorCode::SHAPE, FIELD_UNITS.index};
  } else if ((hidden != 0) != with_hidden || hidden > MAX_HIDDEN || hidden % I != 0) {
    verdict = {ErrorCode::SHAPE, FIELD_HIDDEN.index};
  } else if (moe && (experts < 1 || experts > MAX_EXPERTS)) {
    verdict = {ErrorCode::SHAPE, FIELD_EXPERTS.index};
  } else if (moe && (top_k < 1 || top_k > most_top_k)) {
    verdict = {ErrorCode::SHAPE, FIELD_TOP_K.index};
  } else if (moe && schedule > std::uint32_t(Schedule::RESIDENT_FIRST)) {
    verdict = {ErrorCode::SHAPE, FIELD_SCHEDULE.index};
  } else if (moe && (gate_shift < OCTAVE_SHIFT_MIN || gate_shift > OCTAVE_SHIFT_MAX)) {
    verdict = {ErrorCode::SHAPE, FIELD_GATE_SHIFT.index};
  } else if (unit_tiles != expected_tiles) {
    verdict = {ErrorCode::SHAPE, FIELD_TILES_PER_UNIT.index};
  } else if (!with_hidden && before_last >= tiles) {  // a unit without a tile
    verdict = {ErrorCode::SHAPE, FIELD_UNITS.index};
  } else if (rows > SLOT_ROWS || hidden_tiles + second_tiles > SLOT_GROUPS) {
    verdict = {ErrorCode::SHAPE, too_large.index};
  } else if (moe && (gate_rows > SLOT_ROWS || gate_tiles > SLOT_GROUPS)) {
    verdict = {ErrorCode::SHAPE, FIELD_EXPERTS.index};
  } else if (value(command, FIELD_UNIT_BYTES) != bytes_of(unit_stripes)) {
    verdict = {ErrorCode::ADDRESS, FIELD_UNIT_BYTES.index};
  } else if (weights % STRIPE_BYTES != 0) {
    verdict = {ErrorCode::ADDRESS, FIELD_WEIGHTS.index};
  } else if (input % STRIPE_BYTES != 0) {
    verdict = {ErrorCode::ADDRESS, FIELD_INPUT.index};
  } else if (output % STRIPE_BYTES != 0) {
    verdict = {ErrorCode::ADDRESS, FIELD_OUTPUT.index};
  } else if (moe && gate % STRIPE_BYTES != 0) {
    verdict = {ErrorCode::ADDRESS, FIELD_GATE.index};
  } else if (!linear && residual % STRIPE_BYTES != 0) {
    verdict = {ErrorCode::ADDRESS, FIELD_RESIDUAL.index};
  } else if (weights + weight_bytes > memory || input + bytes_of(input_stripes) > memory) {
    verdict = {ErrorCode::READ, 0};
  } else if (output + bytes_of(output_stripes) > memory) {
    verdict = {ErrorCode::WRITE, 0};
  } else if ((moe && gate + bytes_of(gate_stripes) > memory) ||
             (!linear && residual + bytes_of(output_stripes) > memory)) {
    verdict = {ErrorCode::READ, 0};
  }

  layer.kind = linear ? Kind::LINEAR : (moe ? Kind::MOE : (with_hidden ? Kind::MLP : Kind::ACCUMULATE));
  layer.narrow = linear && (value(command, FIELD_FLAGS) & FLAG_NARROW) != 0;
  layer.no_prefetch = (value(command, FIELD_FLAGS) & FLAG_NO_PREFETCH) != 0;
  layer.schedule = std::uint8_t(schedule);
  layer.gate_shift = std::int8_t(gate_shift);
  layer.job = std::uint16_t(value(command, FIELD_JOB));
  layer.tokens = token_t(tokens);
  layer.experts = expert_t(experts);
  layer.top_k = uint<4>(top_k);
  layer.units = std::uint8_t(units);
  layer.outputs = std::uint16_t(outputs);
  layer.input_beats = beats_t(input_beats);
  layer.hidden_beats = beats_t(hidden_beats);
  layer.input_lines = uint<16>(input_lines);
  layer.output_lines = uint<17>(output_lines);
  layer.hidden_tiles = tiles_t(hidden_tiles);
  layer.unit_tiles = tiles_t(unit_tiles);
  layer.last_tiles = tiles_t(with_hidden ? tiles : tiles - before_last);
  layer.gate_tiles = tiles_t(gate_tiles);
  layer.weights = weights / STRIPE_BYTES;
  layer.gate = gate / STRIPE_BYTES;
  layer.input = input / STRIPE_BYTES;
  layer.residual = residual / STRIPE_BYTES;
  layer.output = output / STRIPE_BYTES;
  layer.unit_stripes = unit_stripes;
  layer.gate_stripes = gate_stripes;
  layer.input_stripes = input_stripes;
  layer.output_stripes = output_stripes;
  layer.pairs = tokens * top_k;
  const std::uint32_t macs_per_pair = with_hidden ? units * hidden * (inputs + outputs) : inputs * outputs;
  layer.macs = std::uint64_t(layer.pairs) * macs_per_pair + std::uint64_t(moe ? tokens * experts : 0U) * inputs;
  return verdict;
}

}  // namespace m3vit
