// Takes the results of the array row by row: one token, O lanes, per cycle. Adds the bias, and then per kind of tile:
// gate logits go out as they are; the first layer of a unit is requantized and sent through GELU into the hidden tile;
// LINEAR rows are requantized to activations; everything else to contributions as wide as the residual, for the combine
// unit. Nothing here stalls: whoever starts a tile has made sure of room behind it.
module drain (
    input  logic                                       clk,
    input  logic                                       rst,
    // Tiles, in the order of their results
    input  logic                                       tile_valid,
    output logic                                       tile_ready,
    input  engine_pkg::tile_t                          tile,
    // Results of the array, at least T cycles apart
    input  logic                                       done,
    input  logic [        engine_pkg::RESULT_BITS-1:0] result,
    // Parameters of the units in the slots
    input  logic                                       group_write,
    input  logic [ engine_pkg::GROUP_ADDRESS_BITS-1:0] group_address,
    input  logic [         engine_pkg::GROUP_BITS-1:0] group_data,
    input  logic                                       gelu_write,
    input  logic [          engine_pkg::SLOT_BITS-1:0] gelu_slot,
    input  logic [                                7:0] gelu_address,
    input  logic [                                7:0] gelu_data,
    // Gate logits
    output logic                                       gate_valid,
    output logic [         engine_pkg::TOKEN_BITS-1:0] gate_token,
    output logic [          engine_pkg::TILE_BITS-1:0] gate_tile,
    output logic                                       gate_last,
    output logic [             engine_pkg::O*32-1:0] gate_logits,
    // Hidden tile
    output logic                                       hidden_write,
    output logic [          engine_pkg::LANE_BITS-1:0] hidden_lane,
    output logic [  engine_pkg::HIDDEN_BLOCK_BITS-1:0] hidden_block,
    output logic [              engine_pkg::O*8-1:0] hidden_data,
    output logic                                       hidden_done,
    // Rows of LINEAR
    output logic                                       linear_write,
    output logic [          engine_pkg::LANE_BITS-1:0] linear_lane,
    output logic [          engine_pkg::TILE_BITS-1:0] linear_tile,
    output logic [              engine_pkg::O*8-1:0] linear_data,
    output logic                                       linear_done,
    output engine_pkg::tile_t                          linear_info,
    // Contributions
    output logic                                       combine_valid,
    output logic [   engine_pkg::WIDE_ADDRESS_BITS-1:0] combine_row,
    output logic [           engine_pkg::WEIGHT17-1:0] combine_weight,
    output logic                                       combine_fresh,
    output logic [             engine_pkg::O*16-1:0] combine_values,
    output logic [     engine_pkg::WIDE_COUNT_BITS-1:0] combine_completes,
    // A slot whose parameters are not needed any more
    output logic                                       unit_done,
    output logic [          engine_pkg::SLOT_BITS-1:0] unit_slot
);
  localparam int T = engine_pkg::T;
  localparam int O = engine_pkg::O;
  localparam int PRODUCT = engine_pkg::PRODUCT_BITS;
  localparam int ROW = O * PRODUCT;
  localparam int TILES = 4;  // waiting, or in the pipeline
  localparam int TILE = engine_pkg::TILE_T_BITS;
  localparam int BIAS = m3vit_pkg::BIAS_BITS;
  localparam int ACCUMULATOR = m3vit_pkg::ACCUMULATOR_BITS;
  localparam int SHIFT = engine_pkg::SHIFT_BITS;
  localparam int RESIDUAL = m3vit_pkg::RESIDUAL_BITS;
  localparam int ADDRESS = engine_pkg::WIDE_ADDRESS_BITS;

  // --- Which result comes next: the tile at the head, its pass, and the output tile within the pass.
  logic waiting_valid, head_valid, hidden_pass, last_index;
  logic [TILE-1:0] waiting_bits;
  engine_pkg::tile_t waiting, head;
  logic [engine_pkg::TILE_BITS-1:0] index;
  logic [engine_pkg::GROUP_ADDRESS_BITS-1:0] group_next;
  fifo #(
      .WIDTH(TILE),
      .DEPTH(TILES)
  ) tiles (
      .clk,
      .rst,
      .in_valid(tile_valid),
      .in_ready(tile_ready),
      .in_data(tile),
      .out_valid(waiting_valid),
      .out_ready(!head_valid),
      .out_data(waiting_bits)
  );
  assign waiting = waiting_bits;
  assign last_index = index == (hidden_pass ? head.hidden_tiles : head.tiles) - 1'b1;

  always_ff @(posedge clk) begin
    if (rst) head_valid <= 1'b0;
    else if (!head_valid) head_valid <= waiting_valid;
    else if (done && last_index && !hidden_pass) head_valid <= 1'b0;
    if (!head_valid) begin
      head <= waiting;
      index <= '0;
      hidden_pass <= waiting.hidden_tiles != '0;
      group_next <= engine_pkg::GROUP_ADDRESS_BITS'(waiting.slot * m3vit_pkg::SLOT_GROUPS);
    end else if (done) begin
      index <= last_index ? '0 : index + 1'b1;
      if (last_index) hidden_pass <= 1'b0;
      group_next <= group_next + 1'b1;
    end
  end

  // --- Rows of a result. `taken_*` belongs to the rows that `product` holds, from the cycle after `done`.
  (* max_fanout = 128 *) logic [engine_pkg::LANE_BITS-1:0] row;  // 0 between results
  logic busy, last_row, taken_hidden, taken_last;
  engine_pkg::tile_t taken;
  logic [engine_pkg::TILE_BITS-1:0] taken_index;
  logic [ROW-1:0] product;
  (* ram_style = "distributed" *) logic [engine_pkg::GROUP_BITS-1:0] groups[engine_pkg::GROUPS];
  logic [engine_pkg::GROUP_BITS-1:0] group;
  assign last_row = engine_pkg::COUNT_BITS'(row) == (done ? head.count : taken.count) - 1'b1;

  always_ff @(posedge clk) begin
    if (rst) begin
      busy <= 1'b0;
      row  <= '0;
    end else if (done || busy) begin
      busy <= !last_row;
      row  <= last_row ? '0 : row + 1'b1;
    end
    if (done) begin
      taken <= head;
      taken_index <= index;
      taken_hidden <= hidden_pass;
      taken_last <= last_index;
      group <= groups[group_next];
    end
    if (done || busy) product <= result[row*ROW+:ROW];
    if (group_write) groups[group_address] <= group_data;
  end

  // --- What goes with a row through the pipeline, besides the values. Stage s is s + 1 cycles after the row was taken.
  localparam int LAST = 7;  // product, accumulator, bytes, bits, round, saturated (5), GELU twice
  logic [LAST:0] valid;
  logic [engine_pkg::LANE_BITS-1:0] lane0;
  logic last0, gate0, linear0, first0, last_tile0;
  logic gate1;
  logic [LAST:1] hidden, last;  // first pass; last row of an output tile ...
  logic [5:1] linear, narrow, last_tile;  // ... which is the last of its tile_t
  logic [LAST:1][engine_pkg::LANE_BITS-1:0] lane;
  logic [LAST:1][engine_pkg::TILE_BITS-1:0] position;
  logic [5:1][engine_pkg::SLOT_BITS-1:0] slot;
  logic [5:1][engine_pkg::WEIGHT17-1:0] weight;
  logic [5:1] fresh;
  logic [5:1][ADDRESS-1:0] wide_row;
  logic [5:1][engine_pkg::WIDE_COUNT_BITS-1:0] completes;
  logic [ADDRESS:0] sum_row;

  assign gate0 = taken.sink == engine_pkg::SINK_GATE;
  assign linear0 = !taken_hidden && taken.sink == engine_pkg::SINK_LINEAR;
  assign first0 = taken_index == '0 && lane0 == '0;
  assign last_tile0 = last0 && taken_last && !taken_hidden;
  assign sum_row = {1'b0, wide_row[1]} + (ADDRESS + 1)'(position[1]);

  always_ff @(posedge clk) begin
    // Logits leave after the bias, LINEAR rows and contributions after saturation.
    if (rst) valid <= '0;
    else valid <= {valid[6], valid[5] && hidden[5], valid[4:2], valid[1] && !gate1, valid[0], done || busy};
    if (done || busy) begin
      last0 <= last_row;
      lane0 <= row;
    end
    if (valid[0]) begin
      hidden[1] <= taken_hidden;
      gate1 <= gate0;
      linear[1] <= linear0;
      narrow[1] <= taken.narrow;
      last[1] <= last0;
      last_tile[1] <= last_tile0;
      lane[1] <= lane0;
      position[1] <= taken_index;
      slot[1] <= taken.slot;
      weight[1] <= taken.weight[lane0*engine_pkg::WEIGHT17+:engine_pkg::WEIGHT17];
      fresh[1] <= taken.fresh[lane0];
      wide_row[1] <= taken.wide_row[lane0*ADDRESS+:ADDRESS];
      completes[1] <= last_tile0 ? taken.completes : '0;
      gate_token <= taken.token[lane0*engine_pkg::TOKEN_BITS+:engine_pkg::TOKEN_BITS];
      gate_last <= taken_last;
    end
    for (int s = 2; s <= 5; s = s + 1)
      if (valid[s-1]) begin
        linear[s] <= linear[s-1];
        narrow[s] <= narrow[s-1];
        last_tile[s] <= last_tile[s-1];
        slot[s] <= slot[s-1];
        weight[s] <= weight[s-1];
        fresh[s] <= fresh[s-1];
        completes[s] <= completes[s-1];
        if (s > 2) wide_row[s] <= wide_row[s-1];
        else if (sum_row < (ADDRESS + 1)'(engine_pkg::WIDE_ROWS)) wide_row[s] <= sum_row[ADDRESS-1:0];
        else wide_row[s] <= ADDRESS'(sum_row - (ADDRESS + 1)'(engine_pkg::WIDE_ROWS));
      end
    for (int s = 2; s <= LAST; s = s + 1)
      if (valid[s-1]) begin
        hidden[s] <= hidden[s-1];
        last[s] <= last[s-1];
        lane[s] <= lane[s-1];
        position[s] <= position[s-1];
      end
    // Output tiles of a unit need its hidden rows, so by its last one nobody reads its GELU table any more.
    unit_done <= !rst && valid[0] && last_tile0 && taken.last_in_unit;
    unit_slot <= taken.slot;
  end

  // --- Lanes.
  logic [O*ACCUMULATOR-1:0] accumulators;
  logic [O*RESIDUAL-1:0] values;
  logic [O*8-1:0] activations;
  for (genvar o = 0; o < O; o = o + 1) begin : g_lane
    requantize lane_unit (
        .clk,
        .stage(valid[4:0]),
        .product(product[o*PRODUCT+:PRODUCT]),
        .bias(group[o*BIAS+:BIAS]),
        .shift(group[O*BIAS+o*SHIFT+:SHIFT]),
        .residual(!hidden[4] && !linear[4]),
        .narrow(linear[4] && narrow[4]),
        .accumulator(accumulators[o*ACCUMULATOR+:ACCUMULATOR]),
        .value(values[o*RESIDUAL+:RESIDUAL])
    );
    assign activations[o*8+:8] = values[o*RESIDUAL+:8];
  end
  gelu_table gelu (
      .clk,
      .write(gelu_write),
      .write_slot(gelu_slot),
      .write_address(gelu_address),
      .write_data(gelu_data),
      .read(valid[5] && hidden[5]),
      .read_slot(slot[5]),
      .read_values(activations),
      .read_data(hidden_data)
  );

  // --- Outputs.
  assign gate_valid = valid[1] && gate1;
  assign gate_tile = position[1];
  assign gate_logits = accumulators;
  assign hidden_write = valid[7];
  assign hidden_lane = lane[7];
  assign hidden_block = engine_pkg::HIDDEN_BLOCK_BITS'(position[7]);
  assign hidden_done = valid[7] && last[7];
  assign linear_write = valid[5] && linear[5];
  assign linear_lane = lane[5];
  assign linear_tile = position[5];
  assign linear_data = activations;
  assign linear_done = linear_write && last_tile[5];
  assign combine_valid = valid[5] && !hidden[5] && !linear[5];
  assign combine_row = wide_row[5];
  assign combine_weight = weight[5];
  assign combine_fresh = fresh[5];
  assign combine_values = values;
  assign combine_completes = completes[5];

  // Tiles of LINEAR whose rows are in the pipeline
  logic info_ready, info_valid;
  logic [TILE-1:0] info;
  fifo #(
      .WIDTH(TILE),
      .DEPTH(TILES)
  ) infos (
      .clk,
      .rst,
      .in_valid(valid[0] && linear0 && first0),
      .in_ready(info_ready),
      .in_data(taken),
      .out_valid(info_valid),
      .out_ready(linear_done),
      .out_data(info)
  );
  assign linear_info = info;

`ifndef SYNTHESIS
  int since;  // cycles since the last result
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) begin
    since <= rst ? T : done ? 1 : since + 1;
    if (rst) armed <= 1'b1;
    if (armed && !rst) begin
      if (done && !head_valid) $error("drain: result without a tile");
      if (done && since < T) $error("drain: results %0d cycles apart", since);
      if (valid[0] && linear0 && first0 && !info_ready) $error("drain: infos full");
      if (linear_write && !info_valid) $error("drain: LINEAR row without its tile");
      if (tile_valid && tile_ready && (tile.count == '0 || tile.tiles == '0)) $error("drain: empty tile");
    end
  end
`endif
endmodule
