#include "check.h"

namespace m3vit {

namespace {

constexpr int LOW_BIT = O & -O;  // lines are a power of two of bytes
constexpr int LINE_TILES_INT8 = LOW_BIT >= LINE_BYTES ? 1 : LINE_BYTES / LOW_BIT;
constexpr int LINE_TILES_INT16 = 2 * LOW_BIT >= LINE_BYTES ? 1 : LINE_BYTES / (2 * LOW_BIT);
constexpr int MAX_UNITS_MLP = 15;  // the combine accumulator has COMBINE_BITS (docs/numerics.md, 8)
constexpr int MAX_UNITS_MOE = 14;
static_assert(COMBINE_BITS == 36, "limits of units");

// Positions in accel.commands.FIELDS.
enum Position : std::uint32_t {
  SCHEDULE = 2, TOP_K = 3, GATE_SHIFT = 4, TOKENS = 7, EXPERTS = 8, INPUTS = 9, OUTPUTS = 10, HIDDEN = 11, UNITS = 12,
  TILES_PER_UNIT = 13, UNIT_BYTES = 14, WEIGHTS = 15, GATE = 16, INPUT = 17, RESIDUAL = 18, OUTPUT = 19,
  WEIGHT_SOURCE = 20,
};

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

std::int64_t value(const command_t& command, const Field& field) {
#pragma HLS INLINE
  return field_value(command.word[field.word], field);
}

std::int64_t divide_up(std::int64_t dividend, std::int64_t divisor) { return (dividend + divisor - 1) / divisor; }

// Stripes of bytes; 0 for none.
std::int64_t stripes_of(std::int64_t bytes) { return divide_up(bytes, STRIPE_BYTES); }

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
  std::uint32_t foreign = std::uint32_t(value(command, FIELD_FLAGS)) & ~(FLAG_NARROW | FLAG_NO_PREFETCH);
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
  const std::int64_t tokens = value(command, FIELD_TOKENS);
  const std::int64_t inputs = value(command, FIELD_INPUTS);
  const std::int64_t outputs = value(command, FIELD_OUTPUTS);
  const std::int64_t hidden = value(command, FIELD_HIDDEN);
  const std::int64_t units = value(command, FIELD_UNITS);
  const std::int64_t unit_tiles = value(command, FIELD_TILES_PER_UNIT);
  const std::int64_t experts = moe ? value(command, FIELD_EXPERTS) : 1;
  const std::int64_t top_k = moe ? value(command, FIELD_TOP_K) : 1;
  const std::int64_t schedule = value(command, FIELD_SCHEDULE);
  const std::int64_t gate_shift = value(command, FIELD_GATE_SHIFT);

  // ---- shape, in the order of accel/limits.py; a divisor below is 0 only where an earlier rule is broken
  const std::int64_t tiles = divide_up(outputs, O);
  const std::int64_t line_tiles = linear ? LINE_TILES_INT8 : LINE_TILES_INT16;
  const std::int64_t some_units = units == 0 ? 1 : units;
  const std::int64_t share = divide_up(divide_up(tiles, some_units), line_tiles) * line_tiles;
  const std::int64_t expected_tiles = with_hidden || units == 1 ? tiles : share;
  const std::int64_t before_last = (units - 1) * unit_tiles;
  const std::int64_t hidden_tiles = divide_up(hidden, O);
  const std::int64_t input_beats = inputs / I;
  const std::int64_t hidden_beats = hidden / I;
  const std::int64_t slice = outputs < unit_tiles * O ? outputs : unit_tiles * O;
  const std::int64_t second_tiles = with_hidden ? tiles : divide_up(slice, O);
  const std::int64_t second_beats = with_hidden ? hidden_beats : input_beats;
  const std::int64_t rows = hidden_tiles * input_beats + second_tiles * second_beats;
  const std::int64_t gate_tiles = moe ? divide_up(experts, O) : 0;
  const std::int64_t gate_rows = gate_tiles * input_beats;
  const std::int64_t max_units = moe ? MAX_UNITS_MOE : (with_hidden ? MAX_UNITS_MLP : 255);
  const std::int64_t max_top_k = experts < MAX_TOP_K ? experts : std::int64_t(MAX_TOP_K);
  const Position too_large = with_hidden ? HIDDEN : TILES_PER_UNIT;

  const std::int64_t unit_lines = (with_hidden ? GELU_LINES : 0) + (hidden_tiles + second_tiles) * GROUP_LINES +
                                  rows * ROW_LINES;
  const std::int64_t unit_stripes = divide_up(unit_lines, BURST_BEATS);
  const std::int64_t gate_stripes = divide_up(gate_tiles * GROUP_LINES + gate_rows * ROW_LINES, BURST_BEATS);
  const std::int64_t input_lines = divide_up(inputs, LINE_BYTES);
  const std::int64_t output_lines = divide_up(outputs * (linear ? 1 : 2), LINE_BYTES);
  const std::int64_t input_stripes = stripes_of(tokens * input_lines * LINE_BYTES);
  const std::int64_t output_stripes = stripes_of(tokens * output_lines * LINE_BYTES);

  const std::int64_t weights = value(command, FIELD_WEIGHTS);
  const std::int64_t gate = value(command, FIELD_GATE);
  const std::int64_t input = value(command, FIELD_INPUT);
  const std::int64_t residual = value(command, FIELD_RESIDUAL);
  const std::int64_t output = value(command, FIELD_OUTPUT);
  const std::int64_t memory = std::int64_t{1} << 32;  // offsets have 32 bits

  verdict_t verdict = {ErrorCode::NONE, 0};
  if (value(command, FIELD_WEIGHT_SOURCE) != 0) {
    verdict = {ErrorCode::OPCODE, WEIGHT_SOURCE};
  } else if (tokens < 1 || tokens > MAX_TOKENS) {
    verdict = {ErrorCode::SHAPE, TOKENS};
  } else if (inputs < 1 || inputs > MAX_INPUTS || inputs % I != 0) {
    verdict = {ErrorCode::SHAPE, INPUTS};
  } else if (inputs > MAX_WIDTH && (with_hidden || units != 1)) {
    verdict = {ErrorCode::SHAPE, INPUTS};
  } else if (outputs < 1 || (!linear && outputs > MAX_WIDTH)) {
    verdict = {ErrorCode::SHAPE, OUTPUTS};
  } else if (units < 1 || units > max_units) {
    verdict = {ErrorCode::SHAPE, UNITS};
  } else if ((hidden != 0) != with_hidden || hidden > MAX_HIDDEN || hidden % I != 0) {
    verdict = {ErrorCode::SHAPE, HIDDEN};
  } else if (moe && (experts < 1 || experts > MAX_EXPERTS)) {
    verdict = {ErrorCode::SHAPE, EXPERTS};
  } else if (moe && (top_k < 1 || top_k > max_top_k)) {
    verdict = {ErrorCode::SHAPE, TOP_K};
  } else if (moe && schedule > std::int64_t(Schedule::RESIDENT_FIRST)) {
    verdict = {ErrorCode::SHAPE, SCHEDULE};
  } else if (moe && (gate_shift < OCTAVE_SHIFT_MIN || gate_shift > OCTAVE_SHIFT_MAX)) {
    verdict = {ErrorCode::SHAPE, GATE_SHIFT};
  } else if (unit_tiles != expected_tiles) {
    verdict = {ErrorCode::SHAPE, TILES_PER_UNIT};
  } else if (!with_hidden && before_last >= tiles) {  // a unit without a tile
    verdict = {ErrorCode::SHAPE, UNITS};
  } else if (rows > SLOT_ROWS || hidden_tiles + second_tiles > SLOT_GROUPS) {
    verdict = {ErrorCode::SHAPE, too_large};
  } else if (moe && (gate_rows > SLOT_ROWS || gate_tiles > SLOT_GROUPS)) {
    verdict = {ErrorCode::SHAPE, EXPERTS};
  } else if (value(command, FIELD_UNIT_BYTES) != unit_stripes * STRIPE_BYTES) {
    verdict = {ErrorCode::ADDRESS, UNIT_BYTES};
  } else if (weights % STRIPE_BYTES != 0) {
    verdict = {ErrorCode::ADDRESS, WEIGHTS};
  } else if (input % STRIPE_BYTES != 0) {
    verdict = {ErrorCode::ADDRESS, INPUT};
  } else if (output % STRIPE_BYTES != 0) {
    verdict = {ErrorCode::ADDRESS, OUTPUT};
  } else if (moe && gate % STRIPE_BYTES != 0) {
    verdict = {ErrorCode::ADDRESS, GATE};
  } else if (!linear && residual % STRIPE_BYTES != 0) {
    verdict = {ErrorCode::ADDRESS, RESIDUAL};
  } else if (weights + experts * units * unit_stripes * STRIPE_BYTES > memory ||
             input + input_stripes * STRIPE_BYTES > memory) {
    verdict = {ErrorCode::READ, 0};
  } else if (output + output_stripes * STRIPE_BYTES > memory) {
    verdict = {ErrorCode::WRITE, 0};
  } else if ((moe && gate + gate_stripes * STRIPE_BYTES > memory) ||
             (!linear && residual + output_stripes * STRIPE_BYTES > memory)) {
    verdict = {ErrorCode::READ, 0};
  }

  layer.kind = linear ? Kind::LINEAR : (moe ? Kind::MOE : (with_hidden ? Kind::MLP : Kind::ACCUMULATE));
  layer.narrow = linear && (std::uint32_t(value(command, FIELD_FLAGS)) & FLAG_NARROW) != 0;
  layer.no_prefetch = (std::uint32_t(value(command, FIELD_FLAGS)) & FLAG_NO_PREFETCH) != 0;
  layer.schedule = std::uint8_t(schedule);
  layer.gate_shift = std::int8_t(gate_shift);
  layer.job = std::uint16_t(value(command, FIELD_JOB));
  layer.tokens = token_t(std::uint32_t(tokens));
  layer.experts = expert_t(std::uint32_t(experts));
  layer.top_k = uint<4>(std::uint32_t(top_k));
  layer.units = std::uint8_t(units);
  layer.outputs = std::uint16_t(outputs);
  layer.input_beats = beats_t(std::uint32_t(input_beats));
  layer.hidden_beats = beats_t(std::uint32_t(hidden_beats));
  layer.input_lines = uint<16>(std::uint32_t(input_lines));
  layer.output_lines = uint<17>(std::uint32_t(output_lines));
  layer.hidden_tiles = tiles_t(std::uint32_t(hidden_tiles));
  layer.unit_tiles = tiles_t(std::uint32_t(unit_tiles));
  layer.last_tiles = tiles_t(std::uint32_t(with_hidden ? tiles : tiles - before_last));
  layer.gate_tiles = tiles_t(std::uint32_t(gate_tiles));
  layer.weights = std::uint32_t(weights / STRIPE_BYTES);
  layer.gate = std::uint32_t(gate / STRIPE_BYTES);
  layer.input = std::uint32_t(input / STRIPE_BYTES);
  layer.residual = std::uint32_t(residual / STRIPE_BYTES);
  layer.output = std::uint32_t(output / STRIPE_BYTES);
  layer.unit_stripes = std::uint32_t(unit_stripes);
  layer.gate_stripes = std::uint32_t(gate_stripes);
  layer.input_stripes = std::uint32_t(input_stripes);
  layer.output_stripes = std::uint32_t(output_stripes);
  layer.pairs = std::uint32_t(tokens * top_k);
  const std::int64_t macs_per_pair = with_hidden ? units * hidden * (inputs + outputs) : inputs * outputs;
  layer.macs = std::uint64_t(tokens * top_k * macs_per_pair + (moe ? tokens * inputs * experts : 0));
  return verdict;
}

}  // namespace m3vit
