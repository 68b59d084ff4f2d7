// The board for test_engine.py, with two things added: what moves on the memory ports, for monitors that only look, and
// functional coverage. A bin is a bit that stays set once its condition has held in some cycle; its name is the comment
// behind it, where test_engine.py finds it.
module engine_bench (
    input  logic                                             ap_clk,
    input  logic                                             ap_rst_n,
    input  logic [                                     11:0] s_axi_control_awaddr,
    input  logic                                             s_axi_control_awvalid,
    output logic                                             s_axi_control_awready,
    input  logic [                                     31:0] s_axi_control_wdata,
    input  logic [                                      3:0] s_axi_control_wstrb,
    input  logic                                             s_axi_control_wvalid,
    output logic                                             s_axi_control_wready,
    output logic [                                      1:0] s_axi_control_bresp,
    output logic                                             s_axi_control_bvalid,
    input  logic                                             s_axi_control_bready,
    input  logic [                                     11:0] s_axi_control_araddr,
    input  logic                                             s_axi_control_arvalid,
    output logic                                             s_axi_control_arready,
    output logic [                                     31:0] s_axi_control_rdata,
    output logic [                                      1:0] s_axi_control_rresp,
    output logic                                             s_axi_control_rvalid,
    input  logic                                             s_axi_control_rready,
    output logic                                             interrupt,
    // Memory ports: handshakes that the next rising edge completes, and what they carry
    output logic [                  m3vit_pkg::PORTS-1:0]    ar_fire,
    output logic [               m3vit_pkg::PORTS*64-1:0]    ar_address,
    output logic [                m3vit_pkg::PORTS*8-1:0]    ar_length,
    output logic [                  m3vit_pkg::PORTS-1:0]    r_fire,
    output logic [m3vit_pkg::PORTS*engine_pkg::PORT_BITS-1:0] r_data,
    output logic [            m3vit_pkg::WRITE_PORTS-1:0]    aw_fire,
    output logic [         m3vit_pkg::WRITE_PORTS*64-1:0]    aw_address,
    output logic [          m3vit_pkg::WRITE_PORTS*8-1:0]    aw_length,
    output logic [            m3vit_pkg::WRITE_PORTS-1:0]    w_fire,
    output logic [m3vit_pkg::WRITE_PORTS*engine_pkg::PORT_BITS-1:0] w_data,
    output logic [m3vit_pkg::WRITE_PORTS*m3vit_pkg::PORT_BYTES-1:0] w_strobe,
    output logic [            m3vit_pkg::WRITE_PORTS-1:0]    w_last,
    output logic [            m3vit_pkg::WRITE_PORTS-1:0]    b_fire,
    output logic                                             any_fire,  // of these, or registers being written
    // Bins
    output logic [                                    127:0] hit
);
  localparam int SLOTS = m3vit_pkg::WEIGHT_SLOTS;
  localparam int SB = engine_pkg::SLOT_BITS;
  localparam int EB = engine_pkg::ENTRY_BITS;
  localparam int JB = engine_pkg::JOB_TAG_BITS;

  m3vit_board board (.*);

  assign ar_fire = board.arvalid & board.arready;
  assign ar_address = board.araddr;
  assign ar_length = board.arlen;
  assign r_fire = board.rvalid & board.rready;
  assign r_data = board.rdata;
  assign aw_fire = board.awvalid & board.awready;
  assign aw_address = board.awaddr;
  assign aw_length = board.awlen;
  assign w_fire = board.wvalid & board.wready;
  assign w_data = board.wdata;
  assign w_strobe = board.wstrb;
  assign w_last = board.wlast;
  assign b_fire = board.bvalid & board.bready;
  assign any_fire = |{ar_fire, r_fire, aw_fire, w_fire, b_fire,
                      s_axi_control_awvalid && s_axi_control_awready, s_axi_control_wvalid && s_axi_control_wready};

  // ---- the array's work: tiles begin and end where beats are sent
  logic clk, rst, tile_first, tile_last;
  // verilator lint_off UNUSEDSIGNAL  // of the records, a few fields matter here
  engine_pkg::tile_t tile;
  engine_pkg::layer_t dispatched, routed, loading;
  // verilator lint_on UNUSEDSIGNAL
  assign clk = ap_clk;
  assign rst = !ap_rst_n;
  assign tile = board.engine.issue_tile;
  assign tile_first = board.engine.drain_valid;
  assign tile_last = board.engine.issue_valid && board.engine.issue_ready;

  // ---- weights ahead: slots that got rows since the unit before was done with them
  logic [SLOTS-1:0] fresh, filling, fresh_at_end;
  for (genvar s = 0; s < SLOTS; s = s + 1) begin : g_slot
    localparam int LOW = s * m3vit_pkg::SLOT_ROWS;
    assign filling[s] = board.engine.row_write && int'(board.engine.row_address) >= LOW
        && int'(board.engine.row_address) < LOW + m3vit_pkg::SLOT_ROWS;
    always_ff @(posedge clk)
      if (rst || (tile_last && tile.last_in_unit && tile.slot == SB'(s))) fresh[s] <= 1'b0;
      else if (filling[s]) fresh[s] <= 1'b1;
  end

  // ---- the tile before, for what lies between the two
  logic began, unit_ended, gate_ended;
  logic [EB-1:0] former_entry;
  logic [JB-1:0] former_job;
  logic [7:0] units_done;
  logic [engine_pkg::ENTRIES*8-1:0] entry_units;
  logic [(1<<JB)*32-1:0] job_weights;  // of its first layer
  logic [JB-1:0] seen_job;
  logic any_job;
  logic dispatched_valid;
  assign dispatched = board.engine.layer_dispatch;
  assign dispatched_valid = board.engine.layer_valid[engine_pkg::VIEW_DISPATCH] && !dispatched.job_end;
  always_ff @(posedge clk) begin
    if (rst || board.engine.clear) {began, any_job} <= 2'b00;
    else begin
      if (tile_last) began <= 1'b1;
      if (dispatched_valid) any_job <= 1'b1;
    end
    if (tile_last) begin
      fresh_at_end <= fresh;
      unit_ended <= tile.last_in_unit;
      gate_ended <= tile.sink == engine_pkg::SINK_GATE;
      former_entry <= tile.entry;
      former_job <= tile.job_tag;
      if (tile.last_in_unit && tile.sink != engine_pkg::SINK_GATE)
        units_done <= tile.last_in_layer ? 8'd0 : units_done + 8'd1;
    end
    if (rst || board.engine.clear) units_done <= 8'd0;
    if (dispatched_valid) begin
      entry_units[8*board.engine.entries[3*EB+:EB]+:8] <= dispatched.units;
      if (!any_job || dispatched.job_tag != seen_job) job_weights[32*dispatched.job_tag+:32] <= dispatched.weights;
      seen_job <= dispatched.job_tag;
    end
  end
  logic between, ahead, same_layer, same_job, whole_expert, same_task;
  assign between = tile_first && began && unit_ended;  // first beat of a unit that is not the program's first
  assign ahead = between && fresh_at_end[tile.slot];
  assign same_job = tile.job_tag == former_job;
  assign same_layer = same_job && tile.entry == former_entry && !tile.first_in_layer;
  assign whole_expert = units_done % entry_units[8*tile.entry+:8] == 8'd0;
  assign same_task = job_weights[32*tile.job_tag+:32] == job_weights[32*former_job+:32];

  // ---- causes of waiting in the gap at hand
  logic [4:0] causes, cause;
  assign cause = board.engine.running && !board.engine.beat ? board.engine.stall : 5'd0;
  always_ff @(posedge clk)
    if (rst || board.engine.clear || board.engine.beat) causes <= 5'd0;
    else causes <= causes | cause;
  logic [4:0] both;
  assign both = cause == 5'd0 ? 5'd0 : causes | cause;

  // ---- queues
  logic expert_taken, layer_known;
  logic [engine_pkg::TOKEN_BITS-1:0] queue;
  logic [engine_pkg::ENTRIES*engine_pkg::EXPERT_BITS-1:0] entry_experts;
  assign expert_taken = board.engine.order_valid && board.engine.order_ready;
  assign queue = board.engine.order.count;
  assign layer_known = board.engine.layer_experts_valid;
  assign routed = board.engine.layer_route;
  logic [engine_pkg::EXPERT_BITS-1:0] all_experts;  // of the layer whose queues are known
  assign all_experts = entry_experts[engine_pkg::EXPERT_BITS*board.engine.layer_experts_entry+:engine_pkg::EXPERT_BITS];
  always_ff @(posedge clk)
    if (board.engine.layer_valid[engine_pkg::VIEW_ROUTE])
      entry_experts[engine_pkg::EXPERT_BITS*board.engine.entries[4*EB+:EB]+:engine_pkg::EXPERT_BITS] <= routed.experts;

  // ---- commands
  logic command, stopped;
  logic [7:0] opcode;
  logic [2:0] verdict;
  assign command = board.engine.u_sequencer.u_fetch.command_executed;
  assign opcode = board.engine.u_sequencer.u_fetch.word.opcode;
  assign stopped = board.engine.u_sequencer.u_fetch.done;
  assign verdict = board.engine.u_sequencer.u_fetch.error;

  // ---- short names
  logic beat, input_read, combine_valid;
  logic [engine_pkg::STORE_LINE_BITS-1:0] input_address;
  logic [engine_pkg::WIDE_ADDRESS_BITS-1:0] combine_row;
  int row_inputs;
  assign beat = board.engine.beat;
  assign input_read = board.engine.input_read;
  assign input_address = board.engine.input_address;
  assign combine_valid = board.engine.combine_valid;
  assign combine_row = board.engine.combine_row;
  assign loading = board.engine.layer_load;
  assign row_inputs = int'(dispatched.input_beats) * engine_pkg::I;

  // ---- memory ports
  logic reads_full, writes_full;
  assign reads_full = board.engine.u_reader.g_port[1].u_port.flight
      == $bits(board.engine.u_reader.g_port[1].u_port.flight)'(m3vit_pkg::OUTSTANDING);
  assign writes_full = board.engine.u_store.g_port[0].u_port.flight
      == $bits(board.engine.u_store.g_port[0].u_port.flight)'(m3vit_pkg::OUTSTANDING);

  logic in_reset, reset_begins;
  initial in_reset = 1'b1;
  always_ff @(posedge clk) in_reset <= rst;
  assign reset_begins = rst && !in_reset;

  logic [127:0] now;
  always_comb begin
    now = '0;
    now[0] = filling[0] && board.engine.beat;  // slot 0 filled while the array computes
    now[1] = filling[1] && board.engine.beat;  // slot 1 filled while the array computes
    now[2] = filling[tile.slot] && board.engine.issue_valid && beat;  // slot filled while its unit computes
    now[3] = &fresh && board.engine.beat;  // every slot holds weights
    now[4] = board.engine.gelu_write && board.engine.beat;  // GELU table written while the array computes
    now[5] = cause[0];  // stall: weights
    now[6] = cause[1];  // stall: input
    now[7] = cause[2];  // stall: route
    now[8] = cause[3];  // stall: drain
    now[9] = cause[4];  // stall: store
    now[10] = both[0] && both[1];  // stall pair: weights, input
    now[11] = both[0] && both[2];  // stall pair: weights, route
    now[12] = both[0] && both[3];  // stall pair: weights, drain
    now[13] = both[0] && both[4];  // stall pair: weights, store
    now[14] = both[1] && both[2];  // stall pair: input, route
    now[15] = both[1] && both[3];  // stall pair: input, drain
    now[16] = both[1] && both[4];  // stall pair: input, store
    // No bin for route with drain: the drain holds a tile back for T - 1 cycles after another's last beat, and one that
    // had to wait for its queue then comes out of dispatch later than that.
    now[17] = tile_last && tile.last_in_layer && board.engine.writes_idle;  // layer ends before anything is stored
    now[18] = both[2] && both[4];  // stall pair: route, store
    now[19] = both[3] && both[4];  // stall pair: drain, store
    now[20] = layer_known && board.engine.layer_experts < all_experts;  // queue: empty
    now[21] = expert_taken && queue == 1;  // queue: one token
    now[22] = expert_taken && queue > 1 && int'(queue) % engine_pkg::T != 0;  // queue: last tile not full
    now[23] = expert_taken && int'(queue) % engine_pkg::T == 0;  // queue: whole tiles
    now[24] = expert_taken && queue == dispatched.tokens && queue > 1;  // queue: every token
    now[25] = expert_taken && queue[0] && queue > 1;  // queue: odd
    now[26] = expert_taken && board.engine.order.last;  // expert: last of its layer
    now[27] = expert_taken && board.engine.order.resident;  // expert: on chip already
    now[28] = expert_taken && dispatched.schedule == m3vit_pkg::SCHEDULE_INDEX;  // schedule: INDEX
    now[29] = expert_taken && dispatched.schedule == m3vit_pkg::SCHEDULE_LONGEST_FIRST;  // schedule: LONGEST_FIRST
    now[30] = expert_taken && dispatched.schedule == m3vit_pkg::SCHEDULE_RESIDENT_FIRST;  // schedule: RESIDENT_FIRST
    now[31] = tile_last && !tile.last_in_unit && |(filling & ~(SLOTS'(1) << tile.slot));  // prefetch across: tile
    now[32] = ahead && same_layer && !gate_ended && !whole_expert;  // prefetch across: unit
    now[33] = ahead && same_layer && !gate_ended && whole_expert;  // prefetch across: expert
    now[34] = ahead && same_job && !same_layer;  // prefetch across: layer
    now[35] = ahead && !same_job && !same_task;  // prefetch across: job of another task
    now[36] = ahead && !same_job && same_task;  // prefetch across: frame (next job of the same task)
    now[37] = between && same_layer && gate_ended;  // first expert after its gate
    now[38] = between && !same_job && !ahead;  // job boundary without prefetch
    now[39] = loading.no_prefetch && board.engine.layer_valid[engine_pkg::VIEW_LOAD] && !board.engine.computed;  // NO_PREFETCH waits
    now[40] = command && opcode == m3vit_pkg::OP_END;  // opcode: END
    now[41] = command && opcode == m3vit_pkg::OP_JOB_END;  // opcode: JOB_END
    now[42] = command && opcode == m3vit_pkg::OP_BARRIER;  // opcode: BARRIER
    now[43] = command && opcode == m3vit_pkg::OP_LINEAR;  // opcode: LINEAR
    now[44] = command && opcode == m3vit_pkg::OP_ACCUMULATE;  // opcode: ACCUMULATE
    now[45] = command && opcode == m3vit_pkg::OP_MLP;  // opcode: MLP
    now[46] = command && opcode == m3vit_pkg::OP_MOE;  // opcode: MOE
    now[47] = command && opcode == m3vit_pkg::OP_BARRIER && !board.engine.u_sequencer.table_empty;  // BARRIER waits
    now[48] = stopped && verdict == 3'd0;  // end: NONE
    now[49] = stopped && verdict == 3'd1;  // end: OPCODE
    now[50] = stopped && verdict == 3'd2;  // end: SHAPE
    now[51] = stopped && verdict == 3'd3;  // end: ADDRESS
    now[52] = stopped && verdict == 3'd4;  // end: READ
    now[53] = stopped && verdict == 3'd5;  // end: WRITE
    now[54] = stopped && verdict == 3'd6;  // end: PROGRAM
    now[55] = input_read && int'(input_address) == engine_pkg::STORE_LINES - 1;  // wrap: input ring
    now[56] = combine_valid && int'(combine_row) == engine_pkg::WIDE_ROWS - 1;  // wrap: accumulators
    now[57] = board.engine.gather_write && &board.engine.gather_group;  // wrap: operand ring
    now[58] = board.engine.retire && &board.engine.oldest;  // wrap: table of commands
    now[59] = board.engine.layer_valid[engine_pkg::VIEW_DISPATCH] && dispatched.job_end && &dispatched.job_tag;  // wrap: job tags
    now[60] = board.engine.u_sequencer.push_valid && !board.engine.u_sequencer.push_ready;  // full: table of commands
    now[61] = board.engine.tile_valid && !board.engine.queue_ready;  // full: tiles before the array
    now[62] = tile_first && tile_last;  // tile of one beat
    now[63] = !board.engine.linear_ready;  // full: LINEAR buffers
    now[64] = board.engine.layer_valid[engine_pkg::VIEW_ROUTE] && !board.engine.gate_ready;  // full: gate logits
    now[65] = &board.engine.u_store.busy;  // full: store buffers
    now[66] = reads_full;  // full: reads in flight
    now[67] = writes_full;  // full: writes in flight
    now[68] = board.engine.waits[3];  // full: accumulators
    now[69] = board.engine.u_reader.line_valid[0] && !board.engine.weights_ready;  // line waits for a GELU table
    now[70] = board.engine.finish_read && !board.engine.finish_read_ready;  // finish waits for combine
    now[71] = board.engine.pack_line_valid && board.engine.finish_line_valid;  // both want to store
    now[72] = board.engine.u_reader.command_valid && board.engine.u_reader.stripe_valid;  // command before a stripe
    now[73] = board.engine.u_reader.request_valid == 3'b111;  // weights, input and residual all want to read
    now[74] = |(board.rvalid & board.rready) && |(board.wvalid & board.wready);  // reading and writing in one cycle
    now[75] = board.engine.u_store.padding;  // stripe padded with zeros
    now[76] = board.engine.pack_line_valid && board.engine.pack_line_cut;  // LINEAR row cut by a unit
    now[77] = board.engine.halt && board.engine.reading;  // bus error: reads still in flight
    now[78] = board.engine.halt && !board.engine.writes_idle;  // bus error: writes still in flight
    now[79] = board.engine.halt && board.engine.beat;  // bus error: the array still computes
    now[80] = reset_begins && board.engine.reading;  // reset: reads in flight
    now[81] = reset_begins && !board.engine.writes_idle;  // reset: writes in flight
    now[82] = reset_begins && board.engine.beat;  // reset: the array computes
    now[83] = tile_first && tile.count == 1;  // tile of one token
    now[84] = tile_first && int'(tile.count) == engine_pkg::T;  // tile without a gap
    now[85] = tile_first && tile.narrow;  // NARROW
    now[86] = dispatched_valid && row_inputs > m3vit_pkg::MAX_WIDTH;  // rows wider than the store
    now[87] = dispatched_valid && dispatched.kind == engine_pkg::KIND_MOE && dispatched.top_k == 1;  // top-1
    now[88] = dispatched_valid && int'(dispatched.top_k) == m3vit_pkg::MAX_TOP_K;  // top-8
    now[89] = dispatched_valid && int'(dispatched.experts) == m3vit_pkg::MAX_EXPERTS;  // most experts
    now[90] = board.engine.interrupt && board.engine.running;  // interrupt of a program while the next runs
    now[91] = board.engine.u_sequencer.u_fetch.push_valid && !board.engine.u_sequencer.jobs_room;  // job waits
  end

  initial hit = '0;
  always_ff @(posedge clk) hit <= hit | now;
endmodule
