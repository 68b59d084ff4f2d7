// Sends one beat per cycle into the array: a weight row and the matching inputs of T tokens. A beat goes as soon as its own
// row and its own inputs are there; why none goes is counted. Order: output tiles outer, inputs inner; hidden tiles first.
module issue (
    input  logic                                                         clk,
    input  logic                                                         rst,
    // Tiles
    input  logic                                                         tile_valid,
    output logic                                                         tile_ready,
    // verilator lint_off UNUSEDSIGNAL
    input  engine_pkg::tile_t                                            tile,  // addresses and weights are for the drain
    // verilator lint_on UNUSEDSIGNAL
    input  logic [engine_pkg::INPUT_LINE_BITS-1:0]                       tile_lines,
    // What is there: weight rows per slot, operand groups (running count), hidden blocks of this tile
    input  logic [m3vit_pkg::WEIGHT_SLOTS*engine_pkg::SLOT_ROW_BITS-1:0] rows_filled,
    input  logic [m3vit_pkg::WEIGHT_SLOTS-1:0]                           gelu_filled,
    input  logic [engine_pkg::OPERAND_GROUP_BITS:0]                      groups_filled,
    output logic                                                         group_freed,
    input  logic                                                         hidden_done,
    // Room behind the array
    output logic                                                         drain_valid,
    input  logic                                                         drain_ready,
    input  logic                                                         gate_ready,
    output logic                                                         gate_reserve,
    input  logic                                                         linear_ready,
    output logic                                                         linear_reserve,
    // Beat, three cycles before its data reach the array
    output logic                                                         beat,
    output logic                                                         beat_first,
    output logic                                                         beat_last,
    output logic [engine_pkg::WEIGHT_ADDRESS_BITS-1:0]                   beat_row,
    output logic                                                         beat_hidden,
    output logic [engine_pkg::OPERAND_GROUP_BITS-1:0]                    beat_group,
    output logic [engine_pkg::LINE_BEAT_BITS-1:0]                        beat_select,
    output logic [engine_pkg::HIDDEN_BLOCK_BITS-1:0]                     beat_block,
    output logic [$clog2(engine_pkg::BLOCK_BEATS+1)-1:0]                 beat_block_select,
    // Events
    input  logic [3:0]                                                   waits,  // of dispatch
    output logic                                                         beat_gate,
    output logic [engine_pkg::JOB_TAG_BITS-1:0]                          beat_job_tag,
    output logic                                                         layer_first_beat,
    output logic                                                         layer_last_beat,
    output logic [4:0]                                                   stall  // {store, drain, route, input, weights}
);
  localparam int T = engine_pkg::T;
  localparam int RB = engine_pkg::SLOT_ROW_BITS;
  localparam int BB = engine_pkg::BEAT_BITS;
  localparam int TB = engine_pkg::TILE_BITS;
  localparam int GB = engine_pkg::OPERAND_GROUP_BITS;
  localparam int HB = engine_pkg::HIDDEN_BLOCK_BITS;
  localparam int LBB = engine_pkg::LINE_BEAT_BITS;
  localparam int BLB = $clog2(engine_pkg::BLOCK_BEATS + 1);

  logic second;  // output tiles that read the hidden tile
  logic [TB-1:0] o;
  logic [BB-1:0] k;
  logic [RB-1:0] row;
  logic [LBB-1:0] line_beat;
  logic [engine_pkg::INPUT_LINE_BITS-1:0] line;
  logic [HB-1:0] block;
  logic [BLB-1:0] block_beat;
  logic [HB-1:0] blocks_there;
  logic [GB:0] base;  // running count of groups at line 0 of this tile
  logic [engine_pkg::COUNT_BITS-1:0] spacing;  // until the result register is free again

  logic with_hidden, begins, last_k, last_o, last_pass, tile_over, first_phase;
  logic weights_there, input_there, route_there, drain_there, store_there, fire;
  logic [GB:0] groups_there;
  assign with_hidden = tile.hidden_tiles != '0;
  assign first_phase = with_hidden && !second;
  assign begins = !second && o == '0 && k == '0;
  assign last_k = k == (second ? tile.hidden_beats : tile.input_beats) - 1'b1;
  assign last_o = o == (first_phase ? tile.hidden_tiles : tile.tiles) - 1'b1;
  assign last_pass = !second && last_o;  // over the inputs
  assign tile_over = last_k && last_o && !first_phase;

  assign weights_there = rows_filled[tile.slot*RB+:RB] > row && (!with_hidden || gelu_filled[tile.slot]);
  assign groups_there = groups_filled - base;
  assign input_there = second || groups_there > (GB + 1)'(line);
  assign route_there = !begins || tile.sink != engine_pkg::SINK_GATE || gate_ready;
  assign drain_there = (!begins || drain_ready) && (!second || blocks_there > block) && (!last_k || spacing == '0);
  assign store_there = !begins || tile.sink != engine_pkg::SINK_LINEAR || linear_ready;
  assign fire = tile_valid && weights_there && input_there && route_there && drain_there && store_there;

  assign tile_ready = fire && tile_over;
  assign drain_valid = fire && begins;
  assign gate_reserve = fire && begins && tile.sink == engine_pkg::SINK_GATE;
  assign linear_reserve = fire && begins && tile.sink == engine_pkg::SINK_LINEAR;
  assign group_freed = fire && last_pass && (last_k || line_beat == '1);

  always_ff @(posedge clk) begin
    if (rst) begin
      second <= 1'b0;
      o <= '0;
      k <= '0;
      row <= '0;
      line <= '0;
      line_beat <= '0;
      block <= '0;
      block_beat <= '0;
      base <= '0;
    end else if (fire) begin
      k <= last_k ? '0 : k + 1'b1;
      line_beat <= last_k ? '0 : line_beat + 1'b1;
      line <= last_k ? '0 : line + engine_pkg::INPUT_LINE_BITS'(line_beat == '1);
      block_beat <= last_k || block_beat == BLB'(engine_pkg::BLOCK_BEATS - 1) ? '0 : block_beat + 1'b1;
      block <= last_k ? '0 : block + HB'(block_beat == BLB'(engine_pkg::BLOCK_BEATS - 1));
      row <= tile_over ? '0 : row + 1'b1;
      if (last_k) o <= last_o ? '0 : o + 1'b1;
      if (last_k && last_o) second <= first_phase;
      if (tile_over) base <= base + (GB + 1)'(tile_lines);
    end
    if (rst || (fire && begins)) blocks_there <= '0;
    else if (hidden_done) blocks_there <= blocks_there + 1'b1;
    if (rst) spacing <= '0;
    else if (fire && last_k) spacing <= engine_pkg::COUNT_BITS'(T - 1);
    else if (spacing != '0) spacing <= spacing - 1'b1;
  end

  // Registered, so that nothing behind sees the decision's logic.
  always_ff @(posedge clk) begin
    beat <= !rst && fire;
    beat_first <= k == '0;
    beat_last <= last_k;
    beat_row <= engine_pkg::WEIGHT_ADDRESS_BITS'(tile.slot * m3vit_pkg::SLOT_ROWS)
              + engine_pkg::WEIGHT_ADDRESS_BITS'(row);
    beat_hidden <= second;
    beat_group <= base[GB-1:0] + GB'(line);
    beat_select <= line_beat;
    beat_block <= block;
    beat_block_select <= block_beat;
    beat_gate <= tile.sink == engine_pkg::SINK_GATE;
    beat_job_tag <= tile.job_tag;
    layer_first_beat <= !rst && fire && begins && tile.first_in_layer;
    layer_last_beat <= !rst && fire && tile_over && tile.last_in_layer;
    stall <= 5'b00000;
    if (!rst && !fire) begin
      if (tile_valid ? !weights_there : waits[0]) stall <= 5'b00001;
      else if (tile_valid ? !input_there : waits[1]) stall <= 5'b00010;
      else if (tile_valid ? !route_there : waits[2]) stall <= 5'b00100;
      else if (tile_valid && !drain_there) stall <= 5'b01000;
      else if (tile_valid || waits[3]) stall <= 5'b10000;
    end
  end
endmodule
