// Decides whether the engine can run a layer command, and derives what its units need to know of it: the rules of
// accel/limits.py, in their order, and every field of engine_pkg::layer_t. One multiplier works through a fixed list of
// products, a product per cycle; then all rules are looked at side by side and the first that is broken is reported.
module check (
    input  logic                                clk,
    input  logic                                rst,
    input  logic                                start,
    // Stable from start to done
    input  m3vit_pkg::command_t                 command,
    input  logic [31:0]                         index,
    input  logic [engine_pkg::JOB_TAG_BITS-1:0] job_tag,
    // One cycle; the results stay until the next start
    output logic                                done,
    output logic [engine_pkg::ERROR_BITS-1:0]   code,    // m3vit_pkg::error_e
    output logic [7:0]                          detail,  // position of the field, as accel.commands.FIELDS counts
    output engine_pkg::layer_t                  layer
);
  localparam int O = engine_pkg::O;
  localparam int LINE = m3vit_pkg::LINE_BYTES;
  localparam int LINE_BITS = $clog2(LINE);
  localparam int INPUT_BITS = $clog2(engine_pkg::I);
  localparam int STRIPE_LINE_BITS = engine_pkg::STRIPE_LINE_BITS;
  localparam int STRIPE_BITS = engine_pkg::STRIPE_BYTE_BITS;
  localparam int COUNT_BITS = engine_pkg::STRIPE_COUNT_BITS;
  localparam int BEAT_BITS = engine_pkg::BEAT_BITS;
  localparam int TILE_BITS = engine_pkg::TILE_BITS;
  localparam int OUTPUT_TILE_BITS = engine_pkg::OUTPUT_TILE_BITS;

  // Smallest number of output tiles whose values fill whole lines: lines are a power of two of bytes
  localparam int LOW_BIT = O & -O;
  localparam int LINE_TILES_INT8 = LOW_BIT >= LINE ? 1 : LINE / LOW_BIT;
  localparam int LINE_TILES_INT16 = 2 * LOW_BIT >= LINE ? 1 : LINE / (2 * LOW_BIT);

  // x / O = (x * RECIPROCAL) >> QUOTIENT_LOW, exact for x below 2^17
  localparam int QUOTIENT_LOW = 17 + $clog2(O);
  localparam int RECIPROCAL = ((1 << QUOTIENT_LOW) + O - 1) / O;

  localparam int EC = engine_pkg::ERROR_BITS;
  localparam logic [EC-1:0] OPCODE = EC'(m3vit_pkg::ERROR_OPCODE);
  localparam logic [EC-1:0] SHAPE = EC'(m3vit_pkg::ERROR_SHAPE);
  localparam logic [EC-1:0] ADDRESS = EC'(m3vit_pkg::ERROR_ADDRESS);
  localparam logic [EC-1:0] READ = EC'(m3vit_pkg::ERROR_READ);
  localparam logic [EC-1:0] WRITE = EC'(m3vit_pkg::ERROR_WRITE);

  // ---- steps: operands are chosen in a step, the product is there three steps later, what it is kept in four
  localparam int LAST_STEP = 35;
  logic busy;
  logic [5:0] step;

  always_ff @(posedge clk) begin
    done <= !rst && !start && busy && step == 6'(LAST_STEP);
    if (rst) busy <= 1'b0;
    else if (start) busy <= 1'b1;
    else if (step == 6'(LAST_STEP)) busy <= 1'b0;
    if (start || !busy) step <= '0;
    else step <= step + 1'b1;
  end

  // ---- the command as its opcode reads it
  logic linear, moe, hidden_kind;
  logic [15:0] experts;
  logic [3:0] top_k;
  logic [7:0] line_tiles;
  assign linear = command.opcode[1:0] == engine_pkg::KIND_LINEAR;
  assign moe = command.opcode[1:0] == engine_pkg::KIND_MOE;
  assign hidden_kind = command.opcode[1];
  assign experts = moe ? command.experts : 16'd1;
  assign top_k = moe ? command.top_k : 4'd1;
  assign line_tiles = linear ? 8'(LINE_TILES_INT8) : 8'(LINE_TILES_INT16);

  // ---- what is kept
  logic [15:0] input_beats, hidden_beats;
  logic [16:0] input_lines, output_lines, width_sum;
  logic [16:0] output_tiles, hidden_tiles, gate_tiles;
  logic [23:0] token_inputs, unit_hidden;
  logic [25:0] weights_per_pair;
  logic [15:0] covered, short_covered, before_last;
  logic [15:0] expert_units;
  logic [31:0] pairs;
  logic [engine_pkg::WIDE_COUNT_BITS-1:0] wide_rows;
  logic [23:0] first_rows, second_rows, gate_rows, rows;
  logic [16:0] groups;
  logic [23:0] row_lines, group_lines, gate_row_lines, gate_group_lines;
  logic [COUNT_BITS-1:0] unit_stripes, gate_stripes, input_stripes, output_stripes;
  logic [29:0] weight_stripes;
  logic [42:0] plain_macs, pair_macs;
  logic [47:0] macs;

  // ---- the multiplier
  logic [25:0] a, a_next;
  logic [16:0] b, b_next;
  logic [42:0] partial, product;

  always_comb begin
    {a_next, b_next} = '0;
    case (step)
      6'd0: {a_next, b_next} = {26'(RECIPROCAL), 17'(command.outputs) + 17'(O - 1)};
      6'd1: {a_next, b_next} = {26'(RECIPROCAL), 17'(command.hidden) + 17'(O - 1)};
      6'd2: {a_next, b_next} = {26'(RECIPROCAL), 17'(command.experts) + 17'(O - 1)};
      6'd3: {a_next, b_next} = {26'(command.tokens), 17'(top_k)};
      6'd4: {a_next, b_next} = {26'(command.tokens), input_lines};
      6'd5: {a_next, b_next} = {26'(command.tokens), output_lines};
      6'd6: {a_next, b_next} = {26'(command.units), 17'(command.hidden)};
      6'd7: {a_next, b_next} = {26'(command.tokens), 17'(command.inputs)};
      6'd8: {a_next, b_next} = {26'(experts), 17'(command.units)};
      6'd9: {a_next, b_next} = {26'(command.tiles_per_unit), 17'(command.units)};
      6'd10: {a_next, b_next} = {26'(8'(command.tiles_per_unit - line_tiles)), 17'(command.units)};
      6'd11: {a_next, b_next} = {26'(8'(command.units - 8'd1)), 17'(command.tiles_per_unit)};
      6'd12: {a_next, b_next} = {26'(command.tokens), output_tiles};
      6'd13: {a_next, b_next} = {26'(input_beats), hidden_tiles};
      6'd14: {a_next, b_next} = {26'(hidden_kind ? hidden_beats : input_beats), 17'(command.tiles_per_unit)};
      6'd15: {a_next, b_next} = {26'(input_beats), gate_tiles};
      6'd16: {a_next, b_next} = {26'(unit_hidden), width_sum};
      6'd17: {a_next, b_next} = {26'(token_inputs), hidden_kind ? 17'(command.experts) : 17'(command.outputs)};
      6'd19: {a_next, b_next} = {26'(rows), 17'(engine_pkg::ROW_LINES)};
      6'd20: {a_next, b_next} = {26'(gate_rows), 17'(engine_pkg::ROW_LINES)};
      6'd21: {a_next, b_next} = {26'(groups), 17'(engine_pkg::GROUP_LINES)};
      6'd22: {a_next, b_next} = {26'(gate_tiles), 17'(engine_pkg::GROUP_LINES)};
      6'd23: {a_next, b_next} = {weights_per_pair, pairs[16:0]};
      6'd28: {a_next, b_next} = {26'(unit_stripes), 17'(expert_units)};
      default: ;
    endcase
  end

  always_ff @(posedge clk) begin
    if (busy) begin
      a <= a_next;
      b <= b_next;
      partial <= 43'(a) * 43'(b);
      product <= partial;
      case (step)
        6'd0: begin
          input_beats <= command.inputs >> INPUT_BITS;
          hidden_beats <= command.hidden >> INPUT_BITS;
          input_lines <= (17'(command.inputs) + 17'(LINE - 1)) >> LINE_BITS;
          output_lines <= 17'((18'(linear ? {1'b0, command.outputs} : {command.outputs, 1'b0}) + 18'(LINE - 1))
                              >> LINE_BITS);
          width_sum <= 17'(command.inputs) + 17'(command.outputs);
        end
        6'd3: output_tiles <= 17'(product >> QUOTIENT_LOW);
        6'd4: hidden_tiles <= 17'(product >> QUOTIENT_LOW);
        6'd5: gate_tiles <= 17'(product >> QUOTIENT_LOW);
        6'd6: pairs <= product[31:0];
        6'd7: input_stripes <= COUNT_BITS'((product + 43'(engine_pkg::STRIPE_LINES - 1)) >> STRIPE_LINE_BITS);
        6'd8: output_stripes <= COUNT_BITS'((product + 43'(engine_pkg::STRIPE_LINES - 1)) >> STRIPE_LINE_BITS);
        6'd9: unit_hidden <= product[23:0];
        6'd10: token_inputs <= product[23:0];
        6'd11: expert_units <= product[15:0];
        6'd12: covered <= product[15:0];
        6'd13: short_covered <= product[15:0];
        6'd14: before_last <= product[15:0];
        6'd15: wide_rows <= product[engine_pkg::WIDE_COUNT_BITS-1:0];
        6'd16: first_rows <= product[23:0];
        6'd17: second_rows <= product[23:0];
        6'd18: begin
          gate_rows <= product[23:0];
          rows <= first_rows + second_rows;
          groups <= hidden_tiles + 17'(command.tiles_per_unit);
        end
        6'd19: weights_per_pair <= product[25:0];
        6'd20: plain_macs <= product;
        6'd22: row_lines <= product[23:0];
        6'd23: gate_row_lines <= product[23:0];
        6'd24: group_lines <= product[23:0];
        6'd25: begin
          gate_group_lines <= product[23:0];
          row_lines <= row_lines + group_lines + 24'(hidden_kind ? engine_pkg::GELU_LINES : 0);
        end
        6'd26: begin
          pair_macs <= product;
          unit_stripes <= COUNT_BITS'((row_lines + 24'(engine_pkg::STRIPE_LINES - 1)) >> STRIPE_LINE_BITS);
          gate_row_lines <= gate_row_lines + gate_group_lines;
        end
        6'd27: begin
          macs <= (hidden_kind ? 48'(pair_macs) : 48'd0) + (hidden_kind && !moe ? 48'd0 : 48'(plain_macs));
          gate_stripes <= COUNT_BITS'((gate_row_lines + 24'(engine_pkg::STRIPE_LINES - 1)) >> STRIPE_LINE_BITS);
        end
        6'd31: weight_stripes <= product[29:0];
        default: ;
      endcase
    end
  end

  // ---- ends of the operands, in stripes; arena offsets have 32 bits
  localparam int END_BITS = 31;
  localparam logic [END_BITS-1:0] MEMORY = END_BITS'(1) << (32 - STRIPE_BITS);
  logic [END_BITS-1:0] weights_end, gate_end, input_end, residual_end, output_end;
  always_ff @(posedge clk) begin
    if (busy && step == 6'd32) begin
      weights_end <= END_BITS'(command.weights >> STRIPE_BITS) + END_BITS'(weight_stripes);
      gate_end <= END_BITS'(command.gate >> STRIPE_BITS) + END_BITS'(gate_stripes);
      input_end <= END_BITS'(command.input_rows >> STRIPE_BITS) + END_BITS'(input_stripes);
      residual_end <= END_BITS'(command.residual >> STRIPE_BITS) + END_BITS'(output_stripes);
      output_end <= END_BITS'(command.output_rows >> STRIPE_BITS) + END_BITS'(output_stripes);
    end
  end

  // ---- the rules, in the order of accel/limits.py. What overflows above has broken an earlier rule.
  localparam int RULES = 28;
  logic [RULES-1:0] broken;
  logic mismatch;
  assign mismatch = hidden_kind || command.units == 8'd1 ? 17'(command.tiles_per_unit) != output_tiles
      : command.tiles_per_unit == 8'd0 || (command.tiles_per_unit & (line_tiles - 8'd1)) != 8'd0
        || 17'(covered) < output_tiles || 17'(short_covered) >= output_tiles;

  always_ff @(posedge clk) begin
    if (busy && step == 6'd33) begin
      broken[0] <= command.weight_source != 4'd0;
      broken[1] <= command.tokens == 16'd0 || command.tokens > 16'(m3vit_pkg::MAX_TOKENS);
      broken[2] <= command.inputs == 16'd0 || command.inputs > 16'(m3vit_pkg::MAX_INPUTS)
          || (command.inputs & 16'(engine_pkg::I - 1)) != 16'd0;
      broken[3] <= command.inputs > 16'(m3vit_pkg::MAX_WIDTH) && (hidden_kind || command.units != 8'd1);
      broken[4] <= command.outputs == 16'd0 || (!linear && command.outputs > 16'(m3vit_pkg::MAX_WIDTH));
      broken[5] <= command.units == 8'd0
          || (hidden_kind && command.units > (moe ? 8'(m3vit_pkg::MAX_UNITS_MOE) : 8'(m3vit_pkg::MAX_UNITS_MLP)));
      broken[6] <= (command.hidden != 16'd0) != hidden_kind;
      broken[7] <= command.hidden > 16'(m3vit_pkg::MAX_HIDDEN)
          || (command.hidden & 16'(engine_pkg::I - 1)) != 16'd0;
      broken[8] <= moe && (command.experts == 16'd0 || command.experts > 16'(m3vit_pkg::MAX_EXPERTS));
      broken[9] <= moe && (command.top_k == 4'd0 || command.top_k > 4'(m3vit_pkg::MAX_TOP_K)
          || 16'(command.top_k) > command.experts);
      broken[10] <= moe && command.schedule > 4'(m3vit_pkg::SCHEDULE_RESIDENT_FIRST);
      broken[11] <= moe && (command.gate_shift < $signed(8'(m3vit_pkg::OCTAVE_SHIFT_MIN))
          || command.gate_shift > $signed(8'(m3vit_pkg::OCTAVE_SHIFT_MAX)));
      broken[12] <= mismatch;
      broken[13] <= !hidden_kind && 17'(before_last) >= output_tiles;
      broken[14] <= rows > 24'(m3vit_pkg::SLOT_ROWS);
      broken[15] <= groups > 17'(m3vit_pkg::SLOT_GROUPS);
      broken[16] <= moe && (gate_rows > 24'(m3vit_pkg::SLOT_ROWS) || gate_tiles > 17'(m3vit_pkg::SLOT_GROUPS));
      broken[17] <= command.unit_bytes != 32'(unit_stripes) << STRIPE_BITS;
      broken[18] <= command.weights[STRIPE_BITS-1:0] != '0;
      broken[19] <= command.input_rows[STRIPE_BITS-1:0] != '0;
      broken[20] <= command.output_rows[STRIPE_BITS-1:0] != '0;
      broken[21] <= moe && command.gate[STRIPE_BITS-1:0] != '0;
      broken[22] <= !linear && command.residual[STRIPE_BITS-1:0] != '0;
      broken[23] <= weights_end > MEMORY;
      broken[24] <= input_end > MEMORY;
      broken[25] <= output_end > MEMORY;
      broken[26] <= moe && gate_end > MEMORY;
      broken[27] <= !linear && residual_end > MEMORY;
    end
  end

  function automatic logic [EC+7:0] verdict(input int rule, input logic hidden_layer);
    case (rule)
      0: verdict = {OPCODE, 8'(m3vit_pkg::FIELD_WEIGHT_SOURCE_INDEX)};
      1: verdict = {SHAPE, 8'(m3vit_pkg::FIELD_TOKENS_INDEX)};
      2, 3: verdict = {SHAPE, 8'(m3vit_pkg::FIELD_INPUTS_INDEX)};
      4: verdict = {SHAPE, 8'(m3vit_pkg::FIELD_OUTPUTS_INDEX)};
      5, 13: verdict = {SHAPE, 8'(m3vit_pkg::FIELD_UNITS_INDEX)};
      6, 7: verdict = {SHAPE, 8'(m3vit_pkg::FIELD_HIDDEN_INDEX)};
      8, 16: verdict = {SHAPE, 8'(m3vit_pkg::FIELD_EXPERTS_INDEX)};
      9: verdict = {SHAPE, 8'(m3vit_pkg::FIELD_TOP_K_INDEX)};
      10: verdict = {SHAPE, 8'(m3vit_pkg::FIELD_SCHEDULE_INDEX)};
      11: verdict = {SHAPE, 8'(m3vit_pkg::FIELD_GATE_SHIFT_INDEX)};
      12: verdict = {SHAPE, 8'(m3vit_pkg::FIELD_TILES_PER_UNIT_INDEX)};
      14, 15:
      verdict = {SHAPE, hidden_layer ? 8'(m3vit_pkg::FIELD_HIDDEN_INDEX) : 8'(m3vit_pkg::FIELD_TILES_PER_UNIT_INDEX)};
      17: verdict = {ADDRESS, 8'(m3vit_pkg::FIELD_UNIT_BYTES_INDEX)};
      18: verdict = {ADDRESS, 8'(m3vit_pkg::FIELD_WEIGHTS_INDEX)};
      19: verdict = {ADDRESS, 8'(m3vit_pkg::FIELD_INPUT_INDEX)};
      20: verdict = {ADDRESS, 8'(m3vit_pkg::FIELD_OUTPUT_INDEX)};
      21: verdict = {ADDRESS, 8'(m3vit_pkg::FIELD_GATE_INDEX)};
      22: verdict = {ADDRESS, 8'(m3vit_pkg::FIELD_RESIDUAL_INDEX)};
      25: verdict = {WRITE, 8'd0};
      default: verdict = {READ, 8'd0};
    endcase
  endfunction

  always_ff @(posedge clk) begin
    if (busy && step == 6'd34) begin
      code <= '0;
      detail <= 8'd0;
      for (int rule = RULES - 1; rule >= 0; rule = rule - 1) begin
        if (broken[rule]) {code, detail} <= verdict(rule, hidden_kind);
      end
    end
  end

  // ---- the layer
  always_comb begin
    layer = '0;
    layer.kind = engine_pkg::kind_e'(command.opcode[1:0]);
    layer.narrow = linear && (command.flags & m3vit_pkg::FLAG_NARROW) != 8'd0;
    layer.no_prefetch = (command.flags & m3vit_pkg::FLAG_NO_PREFETCH) != 8'd0;
    layer.index = index;
    layer.job = command.job;
    layer.job_tag = job_tag;
    layer.tokens = command.tokens[engine_pkg::TOKEN_BITS-1:0];
    layer.input_beats = input_beats[BEAT_BITS-1:0];
    layer.input_lines = input_lines[engine_pkg::INPUT_LINE_BITS-1:0];
    layer.hidden_beats = hidden_beats[BEAT_BITS-1:0];
    layer.hidden_tiles = hidden_tiles[TILE_BITS-1:0];
    layer.unit_tiles = TILE_BITS'(command.tiles_per_unit);
    layer.last_tiles = hidden_kind ? TILE_BITS'(command.tiles_per_unit) : TILE_BITS'(output_tiles - 17'(before_last));
    layer.output_tiles = output_tiles[OUTPUT_TILE_BITS-1:0];
    layer.outputs = command.outputs;
    layer.units = command.units;
    layer.experts = experts[engine_pkg::EXPERT_BITS-1:0];
    layer.top_k = top_k[engine_pkg::TOP_K_BITS-1:0];
    layer.schedule = moe ? m3vit_pkg::schedule_e'(command.schedule) : m3vit_pkg::SCHEDULE_INDEX;
    layer.gate_shift = moe ? command.gate_shift : 8'sd0;
    layer.gate_tiles = moe ? gate_tiles[TILE_BITS-1:0] : '0;
    layer.unit_stripes = unit_stripes;
    layer.gate_stripes = moe ? gate_stripes : '0;
    layer.input_stripes = input_stripes;
    layer.residual_stripes = linear ? '0 : output_stripes;
    layer.output_stripes = output_stripes;
    layer.output_lines = output_lines[engine_pkg::OUTPUT_LINE_BITS-1:0];
    layer.wide_rows = linear ? '0 : wide_rows;
    layer.weights = command.weights;
    layer.gate = command.gate;
    layer.input_rows = command.input_rows;
    layer.residual = command.residual;
    layer.output_rows = command.output_rows;
    layer.pairs = pairs;
    layer.macs = macs;
  end

  // Reserved bits are the decoder's business, the index of the layer is for traces.
  logic unused;
  assign unused = &{1'b0, command.reserved_356, command.layer};
endmodule
