// From tiles to beats for test_dispatch.py: dispatch, gather, issue and the operand path, wired as in the engine. Weights,
// routing, input lines, accumulators and everything behind the array are the bench's.
module dispatch_bench (
    input  logic                                                         clk,
    input  logic                                                         rst,
    // Layers
    input  logic                                                         layer_valid,
    input  engine_pkg::layer_t                                           layer,
    input  logic [engine_pkg::ENTRY_BITS-1:0]                            entry,
    output logic                                                         layer_advance,
    input  logic [engine_pkg::ENTRY_BITS-1:0]                            load_entry,
    output logic                                                         computed,
    // Weights, experts, queues
    input  logic                                                         slot_valid,
    output logic                                                         slot_ready,
    input  logic [engine_pkg::SLOT_BITS-1:0]                             slot,
    input  logic [m3vit_pkg::WEIGHT_SLOTS*engine_pkg::SLOT_ROW_BITS-1:0] rows_filled,
    input  logic [m3vit_pkg::WEIGHT_SLOTS-1:0]                           gelu_filled,
    input  logic                                                         order_valid,
    output logic                                                         order_ready,
    input  engine_pkg::order_t                                           order,
    output logic                                                         walk_start,
    output logic [engine_pkg::NODE_BITS-1:0]                             walk_head,
    output logic [engine_pkg::TOKEN_BITS-1:0]                            walk_count,
    input  logic                                                         walk_valid,
    output logic                                                         walk_ready,
    input  logic [engine_pkg::TOKEN_BITS-1:0]                            walk_token,
    input  logic [engine_pkg::WEIGHT17-1:0]                              walk_weight,
    input  logic                                                         append_valid,
    input  logic [engine_pkg::TOKEN_BITS-1:0]                            append_token,
    // Input lines in, lines and accumulator rows given back
    input  logic                                                         line_write,
    input  logic [engine_pkg::LINE_BITS-1:0]                             line_data,
    output logic [engine_pkg::STORE_COUNT_BITS-1:0]                      lines_freed,
    input  logic                                                         wide_freed,
    // Tiles as they leave dispatch, and as issue begins and ends them
    output logic                                                         tile_fire,
    output engine_pkg::tile_t                                            tile,
    output logic                                                         tile_done,
    output logic                                                         drain_valid,
    input  logic                                                         drain_ready,
    input  logic                                                         gate_ready,
    output logic                                                         gate_reserve,
    input  logic                                                         linear_ready,
    output logic                                                         linear_reserve,
    // Hidden tile
    input  logic                                                         hidden_write,
    input  logic [engine_pkg::LANE_BITS-1:0]                             hidden_lane,
    input  logic [engine_pkg::HIDDEN_BLOCK_BITS-1:0]                     hidden_block,
    input  logic [engine_pkg::O*8-1:0]                                   hidden_data,
    input  logic                                                         hidden_done,
    // Beats: as issue sends them, and three cycles later beside their operands
    output logic                                                         beat,
    output logic                                                         beat_gate,
    output logic [engine_pkg::JOB_TAG_BITS-1:0]                          beat_job_tag,
    output logic                                                         layer_first_beat,
    output logic                                                         layer_last_beat,
    output logic [4:0]                                                   stall,
    output logic                                                         array_beat,
    output logic                                                         array_first,
    output logic                                                         array_last,
    output logic [engine_pkg::WEIGHT_ADDRESS_BITS-1:0]                   array_row,
    output logic [engine_pkg::OPERAND_BITS-1:0]                          operand
);
  localparam int RB = engine_pkg::WEIGHT_ADDRESS_BITS;

  logic tile_valid, gather_ready, queue_ready;
  logic [engine_pkg::INPUT_LINE_BITS-1:0] tile_lines, issue_lines;
  logic [engine_pkg::T*engine_pkg::STORE_LINE_BITS-1:0] tile_address;
  logic [engine_pkg::STORE_COUNT_BITS-1:0] tile_frees;
  logic [3:0] waits;
  assign tile_fire = tile_valid && gather_ready && queue_ready;
  dispatch u_dispatch (
      .clk,
      .rst,
      .layer_valid,
      .layer,
      .entry,
      .layer_advance,
      .slot_valid,
      .slot_ready,
      .slot,
      .order_valid,
      .order_ready,
      .order,
      .walk_start,
      .walk_head,
      .walk_count,
      .walk_valid,
      .walk_ready,
      .walk_token,
      .walk_weight,
      .append_valid,
      .append_token,
      .line_written    (line_write),
      .wide_freed_valid(wide_freed),
      .wide_freed      (engine_pkg::WIDE_COUNT_BITS'(1)),
      .tile_valid,
      .tile_ready      (gather_ready && queue_ready),
      .tile,
      .tile_lines,
      .tile_address,
      .tile_frees,
      .tile_done,
      .waits,
      .load_entry,
      .computed
  );

  logic input_read, gather_write, group_freed;
  logic [engine_pkg::STORE_LINE_BITS-1:0] input_address;
  logic [engine_pkg::LINE_BITS-1:0] input_line;
  logic [engine_pkg::LANE_BITS-1:0] gather_lane;
  logic [engine_pkg::OPERAND_GROUP_BITS-1:0] gather_group;
  logic [engine_pkg::OPERAND_GROUP_BITS:0] groups_filled;
  input_store u_input_store (
      .clk,
      .rst,
      .write       (line_write),
      .write_data  (line_data),
      .read        (input_read),
      .read_address(input_address),
      .read_data   (input_line)
  );
  gather u_gather (
      .clk,
      .rst,
      .tile_valid  (tile_valid && queue_ready),
      .tile_ready  (gather_ready),
      .tile_count  (tile.count),
      .tile_lines,
      .tile_address,
      .tile_frees,
      .read        (input_read),
      .read_address(input_address),
      .freed       (lines_freed),
      .write       (gather_write),
      .write_lane  (gather_lane),
      .write_group (gather_group),
      .filled      (groups_filled),
      .group_freed
  );

  logic issue_valid, issue_ready;
  engine_pkg::tile_t issue_tile;
  assign tile_done = issue_valid && issue_ready;
  fifo #(
      .WIDTH(engine_pkg::TILE_T_BITS + engine_pkg::INPUT_LINE_BITS),
      .DEPTH(4)
  ) u_tiles (
      .clk,
      .rst,
      .in_valid (tile_valid && gather_ready),
      .in_ready (queue_ready),
      .in_data  ({tile, tile_lines}),
      .out_valid(issue_valid),
      .out_ready(issue_ready),
      .out_data ({issue_tile, issue_lines})
  );

  logic beat_first, beat_last, beat_hidden;
  logic [RB-1:0] beat_row, row1, row2;
  logic [engine_pkg::OPERAND_GROUP_BITS-1:0] beat_group;
  logic [engine_pkg::LINE_BEAT_BITS-1:0] beat_select;
  logic [engine_pkg::HIDDEN_BLOCK_BITS-1:0] beat_block;
  logic [$clog2(engine_pkg::BLOCK_BEATS+1)-1:0] beat_block_select;
  issue u_issue (
      .clk,
      .rst,
      .tile_valid (issue_valid),
      .tile_ready (issue_ready),
      .tile       (issue_tile),
      .tile_lines (issue_lines),
      .rows_filled,
      .gelu_filled,
      .groups_filled,
      .group_freed,
      .hidden_done,
      .drain_valid,
      .drain_ready,
      .gate_ready,
      .gate_reserve,
      .linear_ready,
      .linear_reserve,
      .beat,
      .beat_first,
      .beat_last,
      .beat_row,
      .beat_hidden,
      .beat_group,
      .beat_select,
      .beat_block,
      .beat_block_select,
      .waits,
      .beat_gate,
      .beat_job_tag,
      .layer_first_beat,
      .layer_last_beat,
      .stall
  );
  operand u_operand (
      .clk,
      .line_write       (gather_write),
      .line_lane        (gather_lane),
      .line_group       (gather_group),
      .line_data        (input_line),
      .hidden_write,
      .hidden_lane,
      .hidden_block,
      .hidden_data,
      .select           (beat),
      .select_hidden    (beat_hidden),
      .select_group     (beat_group),
      .select_beat      (beat_select),
      .select_block     (beat_block),
      .select_block_beat(beat_block_select),
      .data             (operand)
  );

  // Operands come three cycles after the beat: what goes with them waits as long.
  logic [1:0] beats, firsts, lasts;
  always_ff @(posedge clk) begin
    {array_beat, beats} <= rst ? 3'b000 : {beats, beat};
    {array_first, firsts} <= {firsts, beat_first};
    {array_last, lasts} <= {lasts, beat_last};
    row1 <= beat_row;
    row2 <= row1;
    array_row <= row2;
  end
endmodule
