// The expert engine: AXI4-Lite control, interrupt, and one AXI4 master per memory port (reads on all, writes on the first
// WRITE_PORTS). Wiring, and the registers that bring weight row and operand of a beat together; docs/engine.md walks
// through the units.
module m3vit_engine (
    input  logic                                             ap_clk,
    input  logic                                             ap_rst_n,
    output logic                                             interrupt,
    // AXI4-Lite
    input  logic [     m3vit_pkg::REGISTER_ADDRESS_BITS-1:0] s_axi_control_awaddr,
    input  logic                                             s_axi_control_awvalid,
    output logic                                             s_axi_control_awready,
    input  logic [                                     31:0] s_axi_control_wdata,
    input  logic [                                      3:0] s_axi_control_wstrb,
    input  logic                                             s_axi_control_wvalid,
    output logic                                             s_axi_control_wready,
    output logic [                                      1:0] s_axi_control_bresp,
    output logic                                             s_axi_control_bvalid,
    input  logic                                             s_axi_control_bready,
    input  logic [     m3vit_pkg::REGISTER_ADDRESS_BITS-1:0] s_axi_control_araddr,
    input  logic                                             s_axi_control_arvalid,
    output logic                                             s_axi_control_arready,
    output logic [                                     31:0] s_axi_control_rdata,
    output logic [                                      1:0] s_axi_control_rresp,
    output logic                                             s_axi_control_rvalid,
    input  logic                                             s_axi_control_rready,
    // AXI4, port p in slice p
    output logic [               m3vit_pkg::PORTS*64-1:0]    m_axi_araddr,
    output logic [                m3vit_pkg::PORTS*8-1:0]    m_axi_arlen,
    output logic [                m3vit_pkg::PORTS*3-1:0]    m_axi_arsize,
    output logic [                m3vit_pkg::PORTS*2-1:0]    m_axi_arburst,
    output logic [                m3vit_pkg::PORTS*4-1:0]    m_axi_arcache,
    output logic [                m3vit_pkg::PORTS*3-1:0]    m_axi_arprot,
    output logic [                  m3vit_pkg::PORTS-1:0]    m_axi_arvalid,
    input  logic [                  m3vit_pkg::PORTS-1:0]    m_axi_arready,
    input  logic [m3vit_pkg::PORTS*engine_pkg::PORT_BITS-1:0] m_axi_rdata,
    input  logic [                m3vit_pkg::PORTS*2-1:0]    m_axi_rresp,
    input  logic [                  m3vit_pkg::PORTS-1:0]    m_axi_rlast,
    input  logic [                  m3vit_pkg::PORTS-1:0]    m_axi_rvalid,
    output logic [                  m3vit_pkg::PORTS-1:0]    m_axi_rready,
    output logic [         m3vit_pkg::WRITE_PORTS*64-1:0]    m_axi_awaddr,
    output logic [          m3vit_pkg::WRITE_PORTS*8-1:0]    m_axi_awlen,
    output logic [          m3vit_pkg::WRITE_PORTS*3-1:0]    m_axi_awsize,
    output logic [          m3vit_pkg::WRITE_PORTS*2-1:0]    m_axi_awburst,
    output logic [          m3vit_pkg::WRITE_PORTS*4-1:0]    m_axi_awcache,
    output logic [          m3vit_pkg::WRITE_PORTS*3-1:0]    m_axi_awprot,
    output logic [            m3vit_pkg::WRITE_PORTS-1:0]    m_axi_awvalid,
    input  logic [            m3vit_pkg::WRITE_PORTS-1:0]    m_axi_awready,
    output logic [m3vit_pkg::WRITE_PORTS*engine_pkg::PORT_BITS-1:0] m_axi_wdata,
    output logic [m3vit_pkg::WRITE_PORTS*m3vit_pkg::PORT_BYTES-1:0] m_axi_wstrb,
    output logic [            m3vit_pkg::WRITE_PORTS-1:0]    m_axi_wlast,
    output logic [            m3vit_pkg::WRITE_PORTS-1:0]    m_axi_wvalid,
    input  logic [            m3vit_pkg::WRITE_PORTS-1:0]    m_axi_wready,
    input  logic [          m3vit_pkg::WRITE_PORTS*2-1:0]    m_axi_bresp,
    input  logic [            m3vit_pkg::WRITE_PORTS-1:0]    m_axi_bvalid,
    output logic [            m3vit_pkg::WRITE_PORTS-1:0]    m_axi_bready
);
  localparam int EB = engine_pkg::ENTRY_BITS;
  localparam int JB = engine_pkg::JOB_TAG_BITS;
  localparam int LAYER = engine_pkg::LAYER_BITS;

  logic clk, rst;
  assign clk = ap_clk;
  initial rst = 1'b1;  // before the first edge, too
  always_ff @(posedge clk) rst <= !ap_rst_n;

  // Constant AXI4 signals: full-width incrementing bursts, modifiable and bufferable.
  for (genvar p = 0; p < m3vit_pkg::PORTS; p = p + 1) begin : g_read_constant
    assign m_axi_arsize[p*3+:3] = 3'(engine_pkg::PORT_BYTE_BITS);
    assign m_axi_arburst[p*2+:2] = 2'b01;
    assign m_axi_arcache[p*4+:4] = 4'b0011;
    assign m_axi_arprot[p*3+:3] = 3'b000;
  end
  for (genvar p = 0; p < m3vit_pkg::WRITE_PORTS; p = p + 1) begin : g_write_constant
    assign m_axi_awsize[p*3+:3] = 3'(engine_pkg::PORT_BYTE_BITS);
    assign m_axi_awburst[p*2+:2] = 2'b01;
    assign m_axi_awcache[p*4+:4] = 4'b0011;
    assign m_axi_awprot[p*3+:3] = 3'b000;
  end
  assign m_axi_wstrb = '1;

  // ---- commands
  logic clear, running, halt, reads_idle, writes_idle, retire, reading;
  logic [m3vit_pkg::PORTS*64-1:0] arena;
  logic command_request_valid, command_request_ready, command_data_valid, command_data_error;
  logic [31:0] command_request_offset;
  logic [m3vit_pkg::COMMAND_BITS-1:0] command_data;
  logic [engine_pkg::VIEWS-1:0] layer_valid, layer_advance;
  logic [engine_pkg::VIEWS*LAYER-1:0] layers;
  logic [engine_pkg::VIEWS*EB-1:0] entries;
  logic [EB-1:0] oldest;
  logic [engine_pkg::ENTRIES-1:0] entry_written, entry_reading;
  logic read_error, write_error;
  logic [EB-1:0] read_error_entry, write_error_entry;
  logic [7:0] read_error_port, write_error_port;
  logic beat, beat_gate, layer_first_beat, layer_last_beat;
  logic [JB-1:0] beat_job_tag, stripe_job_tag;
  logic [4:0] stall;
  logic stripe_requested, stripe_is_weight, stripe_done;
  logic layer_experts_valid, job_crc_valid;
  logic [EB-1:0] layer_experts_entry, job_crc_entry;
  logic [engine_pkg::EXPERT_BITS-1:0] layer_experts;
  logic [31:0] job_crc, rec_address;
  logic rec_valid, rec_ready, rec_done;
  logic [m3vit_pkg::COMMAND_BITS-1:0] rec_data;
  sequencer u_sequencer (
      .clk,
      .rst,
      .awaddr (s_axi_control_awaddr),
      .awvalid(s_axi_control_awvalid),
      .awready(s_axi_control_awready),
      .wdata  (s_axi_control_wdata),
      .wstrb  (s_axi_control_wstrb),
      .wvalid (s_axi_control_wvalid),
      .wready (s_axi_control_wready),
      .bresp  (s_axi_control_bresp),
      .bvalid (s_axi_control_bvalid),
      .bready (s_axi_control_bready),
      .araddr (s_axi_control_araddr),
      .arvalid(s_axi_control_arvalid),
      .arready(s_axi_control_arready),
      .rdata  (s_axi_control_rdata),
      .rresp  (s_axi_control_rresp),
      .rvalid (s_axi_control_rvalid),
      .rready (s_axi_control_rready),
      .interrupt_line(interrupt),
      .clear,
      .running,
      .arena,
      .command_request_valid,
      .command_request_ready,
      .command_request_offset,
      .command_data_valid,
      .command_data,
      .command_data_error,
      .layer_valid,
      .layer(layers),
      .entry(entries),
      .layer_advance,
      .retire,
      .oldest,
      .entry_written(entry_written & ~entry_reading),  // and nothing of it is still being read
      .read_error,
      .read_error_entry,
      .read_error_port,
      .write_error,
      .write_error_entry,
      .write_error_port,
      .halt,
      .reads_idle,
      .writes_idle,
      .beat,
      .beat_gate,
      .beat_job_tag,
      .layer_first_beat,
      .layer_last_beat,
      .stall,
      .reading,
      .stripe_requested,
      .stripe_is_weight,
      .stripe_done,
      .stripe_job_tag,
      .layer_experts_valid,
      .layer_experts_entry,
      .layer_experts,
      .job_crc_valid,
      .job_crc_entry,
      .job_crc,
      .rec_valid,
      .rec_ready,
      .rec_address,
      .rec_data,
      .rec_done
  );

  /* verilator lint_off UNUSEDSIGNAL */  // every unit sees the whole entry and needs a part
  engine_pkg::layer_t layer_load, layer_input, layer_residual, layer_dispatch, layer_route, layer_finish, layer_pack;
  /* verilator lint_on UNUSEDSIGNAL */
  assign layer_load = layers[engine_pkg::VIEW_LOAD*LAYER+:LAYER];
  assign layer_input = layers[engine_pkg::VIEW_INPUT*LAYER+:LAYER];
  assign layer_residual = layers[engine_pkg::VIEW_RESIDUAL*LAYER+:LAYER];
  assign layer_dispatch = layers[engine_pkg::VIEW_DISPATCH*LAYER+:LAYER];
  assign layer_route = layers[engine_pkg::VIEW_ROUTE*LAYER+:LAYER];
  assign layer_finish = layers[engine_pkg::VIEW_FINISH*LAYER+:LAYER];
  assign layer_pack = layers[engine_pkg::VIEW_PACK*LAYER+:LAYER];

  // ---- reading
  logic [2:0] stripe_valid, stripe_ready, line_valid;
  logic [3*32-1:0] stripe_offset;
  logic [3*EB-1:0] stripe_entry;
  logic [3*JB-1:0] stripe_job;
  logic weights_ready, line_last;
  logic [engine_pkg::LINE_BITS-1:0] line_data;
  assign stripe_entry[0+:EB] = entries[engine_pkg::VIEW_LOAD*EB+:EB];
  assign stripe_job[0+:JB] = layer_load.job_tag;
  reader u_reader (
      .clk,
      .rst,
      .halt,
      .arena,
      .oldest,
      .request_valid  (stripe_valid),
      .request_ready  (stripe_ready),
      .request_offset (stripe_offset),
      .request_entry  (stripe_entry),
      .request_job_tag(stripe_job),
      .command_request_valid,
      .command_request_ready,
      .command_request_offset,
      .command_data_valid,
      .command_data,
      .command_data_error,
      .line_valid,
      .line_ready     (weights_ready),
      .line_data,
      .line_last,
      .error_valid    (read_error),
      .error_entry    (read_error_entry),
      .error_port     (read_error_port),
      .stripe_requested,
      .stripe_is_weight,
      .stripe_done,
      .stripe_job_tag,
      .reading,
      .entry_reading,
      .idle           (reads_idle),
      .araddr         (m_axi_araddr),
      .arlen          (m_axi_arlen),
      .arvalid        (m_axi_arvalid),
      .arready        (m_axi_arready),
      .rdata          (m_axi_rdata),
      .rresp          (m_axi_rresp),
      .rlast          (m_axi_rlast),
      .rvalid         (m_axi_rvalid),
      .rready         (m_axi_rready)
  );

  // ---- weights
  logic load_order_valid, load_order_ready, resident_hit, slot_valid, slot_ready, unit_done, computed;
  engine_pkg::order_t load_order;
  logic [31:0] resident_query;
  logic [engine_pkg::SLOT_BITS-1:0] slot, unit_slot, gelu_slot;
  logic [m3vit_pkg::WEIGHT_SLOTS*engine_pkg::SLOT_ROW_BITS-1:0] rows_filled;
  logic [m3vit_pkg::WEIGHT_SLOTS-1:0] gelu_filled;
  logic row_write, group_write, gelu_write;
  logic [engine_pkg::WEIGHT_ADDRESS_BITS-1:0] row_address, beat_row;
  logic [engine_pkg::ROW_BITS-1:0] row_data, weights;
  logic [engine_pkg::GROUP_ADDRESS_BITS-1:0] group_address;
  logic [engine_pkg::GROUP_BITS-1:0] group_data;
  logic [7:0] gelu_address, gelu_data;
  load u_load (
      .clk,
      .rst,
      .forget        (clear),
      .layer_valid   (layer_valid[engine_pkg::VIEW_LOAD]),
      .layer         (layer_load),
      .layer_advance (layer_advance[engine_pkg::VIEW_LOAD]),
      .computed,
      .order_valid   (load_order_valid),
      .order_ready   (load_order_ready),
      .order         (load_order),
      .resident_query,
      .resident_layer(layer_route),
      .resident_hit,
      .request_valid (stripe_valid[0]),
      .request_ready (stripe_ready[0]),
      .request_offset(stripe_offset[0+:32]),
      .line_valid    (line_valid[0]),
      .line_ready    (weights_ready),
      .line_data,
      .slot_valid,
      .slot_ready,
      .slot,
      .rows_filled,
      .gelu_filled,
      .unit_done,
      .unit_slot,
      .row_write,
      .row_address,
      .row_data,
      .group_write,
      .group_address,
      .group_data,
      .gelu_write,
      .gelu_slot,
      .gelu_address,
      .gelu_data
  );
  ram #(
      .WIDTH(engine_pkg::ROW_BITS),
      .DEPTH(engine_pkg::WEIGHT_ROWS),
      .STYLE("ultra")
  ) u_weights (
      .clk,
      .write        (row_write),
      .write_address(row_address),
      .write_data   (row_data),
      .read         (beat),
      .read_address (beat_row),
      .read_data    (weights)
  );

  // ---- input rows
  logic input_keep, input_read, gather_write;
  logic [engine_pkg::STORE_COUNT_BITS-1:0] lines_freed;
  logic [engine_pkg::STORE_LINE_BITS-1:0] input_address;
  logic [engine_pkg::LINE_BITS-1:0] input_line;
  row_source #(
      .CAPACITY(engine_pkg::STORE_LINES),
      .ROW_LINE_BITS(engine_pkg::INPUT_LINE_BITS)
  ) u_input_rows (
      .clk,
      .rst,
      .layer_valid    (layer_valid[engine_pkg::VIEW_INPUT]),
      .layer_skip     (layer_input.job_end),
      .tokens         (layer_input.tokens),
      .row_lines      (layer_input.input_lines),
      .rows           (layer_input.input_rows),
      .entry          (entries[engine_pkg::VIEW_INPUT*EB+:EB]),
      .job_tag        (layer_input.job_tag),
      .layer_advance  (layer_advance[engine_pkg::VIEW_INPUT]),
      .request_valid  (stripe_valid[1]),
      .request_ready  (stripe_ready[1]),
      .request_offset (stripe_offset[32+:32]),
      .request_entry  (stripe_entry[EB+:EB]),
      .request_job_tag(stripe_job[JB+:JB]),
      .line_valid     (line_valid[1]),
      .line_last,
      .line_keep      (input_keep),
      .freed          (lines_freed)
  );
  input_store u_input_store (
      .clk,
      .rst,
      .write       (input_keep),
      .write_data  (line_data),
      .read        (input_read),
      .read_address(input_address),
      .read_data   (input_line)
  );

  // ---- residual rows
  logic residual_keep, residual_popped;
  row_source #(
      .CAPACITY(engine_pkg::RESIDUAL_LINES),
      .ROW_LINE_BITS(engine_pkg::OUTPUT_LINE_BITS)
  ) u_residual_rows (
      .clk,
      .rst,
      .layer_valid    (layer_valid[engine_pkg::VIEW_RESIDUAL]),
      .layer_skip     (layer_residual.job_end || layer_residual.kind == engine_pkg::KIND_LINEAR),
      .tokens         (layer_residual.tokens),
      .row_lines      (layer_residual.output_lines),
      .rows           (layer_residual.residual),
      .entry          (entries[engine_pkg::VIEW_RESIDUAL*EB+:EB]),
      .job_tag        (layer_residual.job_tag),
      .layer_advance  (layer_advance[engine_pkg::VIEW_RESIDUAL]),
      .request_valid  (stripe_valid[2]),
      .request_ready  (stripe_ready[2]),
      .request_offset (stripe_offset[64+:32]),
      .request_entry  (stripe_entry[2*EB+:EB]),
      .request_job_tag(stripe_job[2*JB+:JB]),
      .line_valid     (line_valid[2]),
      .line_last,
      .line_keep      (residual_keep),
      .freed          ($clog2(engine_pkg::RESIDUAL_LINES + 1)'(residual_popped))
  );

  // ---- tiles
  logic order_valid, order_ready, walk_start, walk_valid, walk_ready, append_valid;
  engine_pkg::order_t order;
  logic [engine_pkg::NODE_BITS-1:0] walk_head;
  logic [engine_pkg::TOKEN_BITS-1:0] walk_count, walk_token, append_token;
  logic [engine_pkg::WEIGHT17-1:0] walk_weight;
  logic tile_valid, tile_ready, gather_ready, queue_ready, wide_freed;
  engine_pkg::tile_t tile, issue_tile;
  logic [engine_pkg::INPUT_LINE_BITS-1:0] tile_lines, issue_lines;
  logic [engine_pkg::T*engine_pkg::STORE_LINE_BITS-1:0] tile_address;
  logic [engine_pkg::STORE_COUNT_BITS-1:0] tile_frees;
  logic [3:0] waits;
  logic issue_valid, issue_ready;
  assign tile_ready = gather_ready && queue_ready;
  dispatch u_dispatch (
      .clk,
      .rst,
      .layer_valid     (layer_valid[engine_pkg::VIEW_DISPATCH]),
      .layer           (layer_dispatch),
      .entry           (entries[engine_pkg::VIEW_DISPATCH*EB+:EB]),
      .layer_advance   (layer_advance[engine_pkg::VIEW_DISPATCH]),
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
      .line_written    (input_keep),
      .wide_freed_valid(wide_freed),
      .wide_freed      (engine_pkg::WIDE_COUNT_BITS'(1)),
      .tile_valid,
      .tile_ready,
      .tile,
      .tile_lines,
      .tile_address,
      .tile_frees,
      .tile_done       (issue_valid && issue_ready),
      .waits,
      .load_entry      (entries[engine_pkg::VIEW_LOAD*EB+:EB]),
      .computed
  );

  logic [engine_pkg::LANE_BITS-1:0] gather_lane;
  logic [engine_pkg::OPERAND_GROUP_BITS-1:0] gather_group;
  logic [engine_pkg::OPERAND_GROUP_BITS:0] groups_filled;
  logic group_freed;
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

  // ---- beats
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
  logic drain_valid, drain_ready, gate_ready, gate_reserve, linear_ready, linear_reserve, hidden_done;
  logic beat_first, beat_last, beat_hidden;
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

  logic hidden_write;
  logic [engine_pkg::LANE_BITS-1:0] hidden_lane;
  logic [engine_pkg::HIDDEN_BLOCK_BITS-1:0] hidden_block;
  logic [engine_pkg::O*8-1:0] hidden_data;
  logic [engine_pkg::OPERAND_BITS-1:0] operand;
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

  // Weight rows come two cycles after the beat, operands three.
  logic [engine_pkg::ROW_BITS-1:0] weights_q;
  logic [2:0] array_beat, array_first, array_last;
  always_ff @(posedge clk) begin
    if (array_beat[1]) weights_q <= weights;
    array_beat <= rst ? 3'b000 : {array_beat[1:0], beat};
    array_first <= {array_first[1:0], beat_first};
    array_last <= {array_last[1:0], beat_last};
  end
  logic done;
  logic [engine_pkg::RESULT_BITS-1:0] result;
  mac_array u_array (
      .clk,
      .rst,
      .beat      (array_beat[2]),
      .beat_first(array_first[2]),
      .beat_last (array_last[2]),
      .operand,
      .weights   (weights_q),
      .done,
      .result
  );

  // ---- results
  logic gate_valid, gate_last, linear_write, linear_done, combine_valid, combine_fresh;
  logic [engine_pkg::TOKEN_BITS-1:0] gate_token;
  logic [engine_pkg::TILE_BITS-1:0] gate_tile, linear_tile;
  logic [engine_pkg::O*32-1:0] gate_logits;
  logic [engine_pkg::LANE_BITS-1:0] linear_lane;
  logic [engine_pkg::O*8-1:0] linear_data;
  engine_pkg::tile_t linear_info;
  logic [engine_pkg::WIDE_ADDRESS_BITS-1:0] combine_row;
  logic [engine_pkg::WEIGHT17-1:0] combine_weight;
  logic [engine_pkg::O*16-1:0] combine_values;
  logic [engine_pkg::WIDE_COUNT_BITS-1:0] combine_completes, completed;
  drain u_drain (
      .clk,
      .rst,
      .tile_valid(drain_valid),
      .tile_ready(drain_ready),
      .tile      (issue_tile),
      .done,
      .result,
      .group_write,
      .group_address,
      .group_data,
      .gelu_write,
      .gelu_slot,
      .gelu_address,
      .gelu_data,
      .gate_valid,
      .gate_token,
      .gate_tile,
      .gate_last,
      .gate_logits,
      .hidden_write,
      .hidden_lane,
      .hidden_block,
      .hidden_data,
      .hidden_done,
      .linear_write,
      .linear_lane,
      .linear_tile,
      .linear_data,
      .linear_done,
      .linear_info,
      .combine_valid,
      .combine_row,
      .combine_weight,
      .combine_fresh,
      .combine_values,
      .combine_completes,
      .unit_done,
      .unit_slot
  );

  logic routing;
  route u_route (
      .clk,
      .rst,
      .forget              (clear),
      .layer_valid         (layer_valid[engine_pkg::VIEW_ROUTE]),
      .layer               (layer_route),
      .entry               (entries[engine_pkg::VIEW_ROUTE*EB+:EB]),
      .layer_advance       (layer_advance[engine_pkg::VIEW_ROUTE]),
      .gate_ready,
      .gate_reserve,
      .gate_valid,
      .gate_token,
      .gate_tile,
      .gate_last,
      .gate_logits,
      .dispatch_order_valid(order_valid),
      .dispatch_order_ready(order_ready),
      .dispatch_order      (order),
      .load_order_valid,
      .load_order_ready,
      .load_order,
      .resident_query,
      .resident_hit,
      .walk_start,
      .walk_head,
      .walk_count,
      .walk_valid,
      .walk_ready,
      .walk_token,
      .walk_weight,
      .append_valid,
      .append_token,
      .layer_experts_valid,
      .layer_experts_entry,
      .layer_experts,
      .job_crc_valid,
      .job_crc_entry,
      .job_crc,
      .routing
  );

  // ---- accumulators and outputs
  logic combine_read, wide_write, finish_read, finish_read_ready;
  logic [engine_pkg::WIDE_ADDRESS_BITS-1:0] combine_address, wide_write_address, finish_address;
  logic [engine_pkg::WIDE_ROW_BITS-1:0] wide_data, wide_write_data;
  combine u_combine (
      .clk,
      .rst,
      .combine_valid,
      .combine_row,
      .combine_weight,
      .combine_fresh,
      .combine_values,
      .combine_completes,
      .read         (combine_read),
      .read_address (combine_address),
      .read_data    (wide_data),
      .write        (wide_write),
      .write_address(wide_write_address),
      .write_data   (wide_write_data),
      .completed
  );
  wide_store u_wide (
      .clk,
      .combine_read,
      .combine_read_address(combine_address),
      .finish_read,
      .finish_read_ready,
      .finish_read_address (finish_address),
      .read_data           (wide_data),
      .write               (wide_write),
      .write_address       (wide_write_address),
      .write_data          (wide_write_data)
  );

  localparam int LA = 32 - $clog2(m3vit_pkg::LINE_BYTES);
  logic finish_line_valid, finish_line_ready, finish_line_final;
  logic pack_line_valid, pack_line_ready, pack_line_cut, pack_line_final;
  logic [engine_pkg::LINE_BITS-1:0] finish_line_data, pack_line_data;
  logic [LA-1:0] finish_line_address, pack_line_address;
  logic [EB-1:0] finish_line_entry, pack_line_entry;
  logic residual_ready;
  finish u_finish (
      .clk,
      .rst,
      .layer_valid      (layer_valid[engine_pkg::VIEW_FINISH]),
      .layer            (layer_finish),
      .entry            (entries[engine_pkg::VIEW_FINISH*EB+:EB]),
      .layer_advance    (layer_advance[engine_pkg::VIEW_FINISH]),
      .residual_valid   (residual_keep),
      .residual_ready,
      .residual_line    (line_data),
      .residual_popped,
      .completed,
      .wide_read        (finish_read),
      .wide_read_ready  (finish_read_ready),
      .wide_read_address(finish_address),
      .wide_read_data   (wide_data),
      .wide_freed,
      .line_valid       (finish_line_valid),
      .line_ready       (finish_line_ready),
      .line_data        (finish_line_data),
      .line_address     (finish_line_address),
      .line_final       (finish_line_final),
      .line_entry       (finish_line_entry)
  );
  linear_pack u_linear_pack (
      .clk,
      .rst,
      .layer_valid  (layer_valid[engine_pkg::VIEW_PACK]),
      .layer        (layer_pack),
      .entry        (entries[engine_pkg::VIEW_PACK*EB+:EB]),
      .layer_advance(layer_advance[engine_pkg::VIEW_PACK]),
      .linear_ready,
      .linear_reserve,
      .linear_write,
      .linear_lane,
      .linear_tile,
      .linear_data,
      .linear_done,
      .linear_info,
      .line_valid   (pack_line_valid),
      .line_ready   (pack_line_ready),
      .line_data    (pack_line_data),
      .line_address (pack_line_address),
      .line_cut     (pack_line_cut),
      .line_final   (pack_line_final),
      .line_entry   (pack_line_entry)
  );
  store u_store (
      .clk,
      .rst,
      .halt,
      .arena             (arena[m3vit_pkg::WRITE_PORTS*64-1:0]),
      .linear_valid      (pack_line_valid),
      .linear_ready      (pack_line_ready),
      .linear_data       (pack_line_data),
      .linear_address    (pack_line_address),
      .linear_cut        (pack_line_cut),
      .linear_final      (pack_line_final),
      .linear_entry      (pack_line_entry),
      .finish_valid      (finish_line_valid),
      .finish_ready      (finish_line_ready),
      .finish_data       (finish_line_data),
      .finish_address    (finish_line_address),
      .finish_final      (finish_line_final),
      .finish_entry      (finish_line_entry),
      .rec_valid,
      .rec_ready,
      .rec_address,
      .rec_data,
      .rec_done,
      .entry_written,
      .entry_retire      (retire),
      .entry_retire_entry(oldest),
      .error_valid       (write_error),
      .error_entry       (write_error_entry),
      .error_port        (write_error_port),
      .writes_idle,
      .awaddr            (m_axi_awaddr),
      .awlen             (m_axi_awlen),
      .awvalid           (m_axi_awvalid),
      .awready           (m_axi_awready),
      .wdata             (m_axi_wdata),
      .wlast             (m_axi_wlast),
      .wvalid            (m_axi_wvalid),
      .wready            (m_axi_wready),
      .bresp             (m_axi_bresp),
      .bvalid            (m_axi_bvalid),
      .bready            (m_axi_bready)
  );

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  logic stopped;  // by a bus error: the array works off what it has, and nothing comes of it before the reset
  always_ff @(posedge clk) begin
    stopped <= !rst && (stopped || halt);
    if (armed && !rst) begin
      assert (!residual_keep || residual_ready) else $error("engine: no room for a residual line");
      assert (!beat || running || stopped) else $error("engine: a beat outside a program");
      assert (!routing || running || stopped) else $error("engine: routing outside a program");
    end
  end
`endif
endmodule
