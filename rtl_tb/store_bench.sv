// The engine's output side for test_store.py: combine, wide store, finish, linear_pack, store. Layers come as the few
// fields that matter here and wait in one queue per view, as in the entry table.
module store_bench (
    input  logic                                       clk,
    input  logic                                       rst,
    // Layers, to both views at once
    input  logic                                       layer_push,
    output logic                                       layer_room,
    input  logic                                       push_job_end,
    input  logic [                              1:0]   push_kind,
    input  logic [     engine_pkg::TOKEN_BITS-1:0]     push_tokens,
    input  logic [engine_pkg::OUTPUT_TILE_BITS-1:0]    push_output_tiles,
    input  logic [                             15:0]   push_outputs,
    input  logic [engine_pkg::OUTPUT_LINE_BITS-1:0]    push_output_lines,
    input  logic [                             31:0]   push_output_rows,
    output logic                                       finish_advance,
    output logic                                       linear_advance,
    // Contributions
    input  logic                                       combine_valid,
    input  logic [engine_pkg::WIDE_ADDRESS_BITS-1:0]   combine_row,
    input  logic [        engine_pkg::WEIGHT17-1:0]    combine_weight,
    input  logic                                       combine_fresh,
    input  logic [            engine_pkg::O*16-1:0]    combine_values,
    input  logic [  engine_pkg::WIDE_COUNT_BITS-1:0]   combine_completes,
    output logic                                       wide_freed,
    // Residual lines
    input  logic                                       residual_valid,
    output logic                                       residual_ready,
    input  logic [     engine_pkg::LINE_BITS-1:0]      residual_line,
    output logic                                       residual_popped,
    // LINEAR rows; of the tile only what linear_pack looks at
    output logic                                       linear_ready,
    input  logic                                       linear_reserve,
    input  logic                                       linear_write,
    input  logic [     engine_pkg::LANE_BITS-1:0]      linear_lane,
    input  logic [     engine_pkg::TILE_BITS-1:0]      linear_tile,
    input  logic [           engine_pkg::O*8-1:0]      linear_data,
    input  logic                                       linear_done,
    input  logic [engine_pkg::OUTPUT_TILE_BITS-1:0]    info_first_tile,
    input  logic [     engine_pkg::TILE_BITS-1:0]      info_tiles,
    input  logic [    engine_pkg::COUNT_BITS-1:0]      info_count,
    input  logic [    engine_pkg::TOKEN_BITS-1:0]      info_token,
    input  logic                                       info_last_in_layer,
    // Store
    input  logic                                       halt,
    input  logic [  m3vit_pkg::WRITE_PORTS*64-1:0]     arena,
    input  logic                                       rec_valid,
    output logic                                       rec_ready,
    input  logic [                             31:0]   rec_address,
    input  logic [   m3vit_pkg::COMMAND_BITS-1:0]      rec_data,
    output logic                                       rec_done,
    output logic [        engine_pkg::ENTRIES-1:0]     entry_written,
    input  logic                                       entry_retire,
    input  logic [     engine_pkg::ENTRY_BITS-1:0]     entry_retire_entry,
    output logic                                       error_valid,
    output logic [     engine_pkg::ENTRY_BITS-1:0]     error_entry,
    output logic [                              7:0]   error_port,
    output logic                                       writes_idle,
    output logic [  m3vit_pkg::WRITE_PORTS*64-1:0]     awaddr,
    output logic [   m3vit_pkg::WRITE_PORTS*8-1:0]     awlen,
    output logic [     m3vit_pkg::WRITE_PORTS-1:0]     awvalid,
    input  logic [     m3vit_pkg::WRITE_PORTS-1:0]     awready,
    output logic [m3vit_pkg::WRITE_PORTS*engine_pkg::PORT_BITS-1:0] wdata,
    output logic [     m3vit_pkg::WRITE_PORTS-1:0]     wlast,
    output logic [     m3vit_pkg::WRITE_PORTS-1:0]     wvalid,
    input  logic [     m3vit_pkg::WRITE_PORTS-1:0]     wready,
    input  logic [   m3vit_pkg::WRITE_PORTS*2-1:0]     bresp,
    input  logic [     m3vit_pkg::WRITE_PORTS-1:0]     bvalid,
    output logic [     m3vit_pkg::WRITE_PORTS-1:0]     bready
);
  localparam int LAYER_BITS = $bits(engine_pkg::layer_t);
  localparam int ADDRESS_BITS = 32 - $clog2(m3vit_pkg::LINE_BYTES);
  localparam int EB = engine_pkg::ENTRY_BITS;

  engine_pkg::layer_t pushed;
  always_comb begin
    pushed = '0;
    pushed.job_end = push_job_end;
    pushed.kind = engine_pkg::kind_e'(push_kind);
    pushed.tokens = push_tokens;
    pushed.output_tiles = push_output_tiles;
    pushed.outputs = push_outputs;
    pushed.output_lines = push_output_lines;
    pushed.output_rows = push_output_rows;
  end

  logic [1:0] view_valid, view_room, view_advance;
  logic [1:0][LAYER_BITS-1:0] view_layer;
  logic [1:0][EB-1:0] view_entry;
  assign layer_room = &view_room;
  assign {linear_advance, finish_advance} = view_advance;
  for (genvar v = 0; v < 2; v = v + 1) begin : g_view
    fifo #(
        .WIDTH(LAYER_BITS),
        .DEPTH(engine_pkg::ENTRIES)
    ) u_view (
        .clk,
        .rst,
        .in_valid (layer_push),
        .in_ready (view_room[v]),
        .in_data  (pushed),
        .out_valid(view_valid[v]),
        .out_ready(view_advance[v]),
        .out_data (view_layer[v])
    );
    always_ff @(posedge clk)
      if (rst) view_entry[v] <= '0;
      else if (view_advance[v]) view_entry[v] <= view_entry[v] + 1'b1;
  end

  logic read, write, wide_read, wide_read_ready;
  logic [engine_pkg::WIDE_ADDRESS_BITS-1:0] read_address, write_address, wide_read_address;
  logic [engine_pkg::WIDE_ROW_BITS-1:0] read_data, write_data;
  logic [engine_pkg::WIDE_COUNT_BITS-1:0] completed;
  combine u_combine (.*);
  wide_store u_wide_store (
      .clk,
      .combine_read        (read),
      .combine_read_address(read_address),
      .finish_read         (wide_read),
      .finish_read_ready   (wide_read_ready),
      .finish_read_address (wide_read_address),
      .read_data,
      .write,
      .write_address,
      .write_data
  );

  logic finish_valid, finish_ready, finish_final, line_valid, line_ready, line_cut, line_final;
  logic [ADDRESS_BITS-1:0] finish_address, line_address;
  logic [engine_pkg::LINE_BITS-1:0] finish_data, line_data;
  logic [EB-1:0] finish_entry, line_entry;
  finish u_finish (
      .clk,
      .rst,
      .layer_valid   (view_valid[0]),
      .layer         (engine_pkg::layer_t'(view_layer[0])),
      .entry         (view_entry[0]),
      .layer_advance (view_advance[0]),
      .residual_valid,
      .residual_ready,
      .residual_line,
      .residual_popped,
      .completed,
      .wide_read,
      .wide_read_ready,
      .wide_read_address,
      .wide_read_data(read_data),
      .wide_freed,
      .line_valid    (finish_valid),
      .line_ready    (finish_ready),
      .line_data     (finish_data),
      .line_address  (finish_address),
      .line_final    (finish_final),
      .line_entry    (finish_entry)
  );

  engine_pkg::tile_t linear_info;
  always_comb begin
    linear_info = '0;
    linear_info.first_tile = info_first_tile;
    linear_info.tiles = info_tiles;
    linear_info.count = info_count;
    linear_info.token[engine_pkg::TOKEN_BITS-1:0] = info_token;
    linear_info.last_in_layer = info_last_in_layer;
  end
  linear_pack u_linear_pack (
      .clk,
      .rst,
      .layer_valid  (view_valid[1]),
      .layer        (engine_pkg::layer_t'(view_layer[1])),
      .entry        (view_entry[1]),
      .layer_advance(view_advance[1]),
      .linear_ready,
      .linear_reserve,
      .linear_write,
      .linear_lane,
      .linear_tile,
      .linear_data,
      .linear_done,
      .linear_info,
      .line_valid,
      .line_ready,
      .line_data,
      .line_address,
      .line_cut,
      .line_final,
      .line_entry
  );

  store u_store (
      .clk,
      .rst,
      .halt,
      .arena,
      .linear_valid  (line_valid),
      .linear_ready  (line_ready),
      .linear_data   (line_data),
      .linear_address(line_address),
      .linear_cut    (line_cut),
      .linear_final  (line_final),
      .linear_entry  (line_entry),
      .finish_valid,
      .finish_ready,
      .finish_data,
      .finish_address,
      .finish_final,
      .finish_entry,
      .rec_valid,
      .rec_ready,
      .rec_address,
      .rec_data,
      .rec_done,
      .entry_written,
      .entry_retire,
      .entry_retire_entry,
      .error_valid,
      .error_entry,
      .error_port,
      .writes_idle,
      .awaddr,
      .awlen,
      .awvalid,
      .awready,
      .wdata,
      .wlast,
      .wvalid,
      .wready,
      .bresp,
      .bvalid,
      .bready
  );
endmodule
