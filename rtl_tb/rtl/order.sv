// Names the experts that have a queue, in the order of the layer's schedule, to two consumers that run at their own
// pace. Experts are scanned one per cycle in index order; who is named is taken out of the queues' bitmap. INDEX names
// at once; LONGEST_FIRST scans once per expert; RESIDENT_FIRST first asks for every expert whether all its units are
// in weight slots, names those that are, then scans once more.
module order (
    input  logic                                clk,
    input  logic                                rst,
    input  logic                                start,  // every entry of the layer has been appended
    output logic                                busy,  // from `start` until every expert has been named
    // Layer, stable while busy and some 16 cycles before
    input  logic [engine_pkg::EXPERT_BITS-1:0]  experts,
    input  m3vit_pkg::schedule_e                schedule,
    input  logic [31:0]                         weights,
    input  logic [7:0]                          units,
    input  logic [engine_pkg::STRIPE_COUNT_BITS-1:0] unit_stripes,
    input  logic                                layer_start,  // pulse: the above are new
    // Queues
    output logic [$clog2(m3vit_pkg::MAX_EXPERTS)-1:0] scan_expert,
    input  logic                                scan_used,
    input  logic [engine_pkg::TOKEN_BITS-1:0]   scan_count,
    input  logic [engine_pkg::NODE_BITS-1:0]    scan_head,
    output logic                                take_valid,
    output logic [$clog2(m3vit_pkg::MAX_EXPERTS)-1:0] take_expert,
    input  logic [engine_pkg::EXPERT_BITS-1:0]  used,  // experts not yet taken
    // Weight slots
    output logic [31:0]                         resident_query,
    input  logic                                resident_hit,
    // Consumers
    output logic                                first,  // pulse: the first expert of a layer is out
    output logic                                dispatch_order_valid,
    input  logic                                dispatch_order_ready,
    output engine_pkg::order_t                  dispatch_order,
    output logic                                load_order_valid,
    input  logic                                load_order_ready,
    output engine_pkg::order_t                  load_order
);
  localparam int EB = engine_pkg::EXPERT_BITS;
  localparam int INDEX_BITS = $clog2(m3vit_pkg::MAX_EXPERTS);
  localparam int TB = engine_pkg::TOKEN_BITS;
  localparam int NB = engine_pkg::NODE_BITS;
  localparam int DEPTH = 16;  // experts that one consumer may be ahead of the other; more than weight slots can hold

  typedef enum logic [1:0] {
    IDLE,
    SCAN,
    ASK,  // slots about the units of the expert at hand
    LONGEST  // name the longest queue of a scan
  } state_e;
  state_e state;

  // ---- scan: `index` is looked up, the expert at hand follows one cycle later
  logic [EB-1:0] index;
  logic found_valid, found_used, accept;
  logic [INDEX_BITS-1:0] found_expert;
  logic [TB-1:0] found_count;
  logic [NB-1:0] found_head;
  logic scanned, over, restart;
  assign scan_expert = index[INDEX_BITS-1:0];
  assign scanned = index == experts;
  assign over = state == SCAN && !found_valid && scanned;

  // ---- schedule
  logic by_length, asking;  // asking: first scan of RESIDENT_FIRST
  logic [INDEX_BITS-1:0] best_expert;
  logic [TB-1:0] best_count;
  logic [NB-1:0] best_head;
  logic name_found, name_best, name_resident, longer;
  logic out_valid, out_room, out_first;
  engine_pkg::order_t out;
  logic [31:0] stride, unit_bytes, base;  // stride: bytes of an expert; base: first unit of the expert at hand
  logic [7:0] summed, unit;
  logic last_unit;

  assign by_length = schedule == m3vit_pkg::SCHEDULE_LONGEST_FIRST;
  assign last_unit = unit == units - 8'd1;
  assign longer = found_valid && found_used && found_count > best_count;
  assign name_resident = state == ASK && resident_hit && last_unit && out_room;
  assign name_found = name_resident
                      || (state == SCAN && found_valid && found_used && !by_length && !asking && out_room);
  assign name_best = state == LONGEST && out_room;
  assign accept = (state == SCAN && !(found_valid && found_used && !by_length && (asking || !out_room)))
                  || (state == ASK && (!resident_hit || (last_unit && out_room)));
  assign restart = start || (over && used != '0 && !by_length) || (name_best && used != EB'(1));
  assign take_valid = name_found || name_best;
  assign take_expert = name_best ? best_expert : found_expert;

  always_ff @(posedge clk) begin
    if (restart) index <= '0;
    else if (accept && !scanned) index <= index + 1'b1;
    if (accept) begin
      found_used <= scan_used;
      found_expert <= index[INDEX_BITS-1:0];
      found_count <= scan_count;
      found_head <= scan_head;
    end
    if (restart) best_count <= '0;
    else if (state == SCAN && longer) {best_expert, best_count, best_head} <= {found_expert, found_count, found_head};
    if (start) asking <= schedule == m3vit_pkg::SCHEDULE_RESIDENT_FIRST;
    else if (over) asking <= 1'b0;
    if (rst) begin
      state <= IDLE;
      found_valid <= 1'b0;
    end else begin
      if (restart) found_valid <= 1'b0;
      else if (accept) found_valid <= !scanned;
      case (state)
        IDLE: if (start) state <= SCAN;
        SCAN:
        if (over) state <= used == '0 ? IDLE : by_length ? LONGEST : SCAN;
        else if (found_valid && found_used && asking) state <= ASK;
        ASK: if (accept) state <= SCAN;
        default: if (name_best) state <= used == EB'(1) ? IDLE : SCAN;
      endcase
    end
  end

  // ---- where units lie
  assign unit_bytes = 32'(unit_stripes) << engine_pkg::STRIPE_BYTE_BITS;
  always_ff @(posedge clk) begin
    if (layer_start) begin
      stride <= '0;
      summed <= '0;
    end else if (summed != units) begin
      stride <= stride + unit_bytes;
      summed <= summed + 8'd1;
    end
    if (start) base <= weights;
    else if (accept && found_valid) base <= base + stride;
    if (state == SCAN) begin
      unit <= '0;
      resident_query <= base;
    end else if (state == ASK && resident_hit && !last_unit) begin
      unit <= unit + 8'd1;
      resident_query <= resident_query + unit_bytes;
    end
  end

  // ---- to both consumers
  logic dispatch_room, load_room;
  assign out_room = !out_valid || (dispatch_room && load_room);
  always_ff @(posedge clk) begin
    if (take_valid) begin
      out.last <= used == EB'(1);
      out.resident <= name_resident;
      out.expert <= EB'(take_expert);
      out.count <= name_best ? best_count : found_count;
      out.head <= name_best ? best_head : found_head;
    end
    if (start) out_first <= 1'b1;
    else if (out_valid) out_first <= 1'b0;
    out_valid <= !rst && (take_valid || !out_room);
  end
  assign first = out_first && out_valid;
  assign busy = state != IDLE || out_valid;

  fifo #(
      .WIDTH($bits(out)),
      .DEPTH(DEPTH)
  ) u_dispatch (
      .clk,
      .rst,
      .in_valid (out_valid && load_room),
      .in_ready (dispatch_room),
      .in_data  (out),
      .out_valid(dispatch_order_valid),
      .out_ready(dispatch_order_ready),
      .out_data (dispatch_order)
  );
  fifo #(
      .WIDTH($bits(out)),
      .DEPTH(DEPTH)
  ) u_load (
      .clk,
      .rst,
      .in_valid (out_valid && dispatch_room),
      .in_ready (load_room),
      .in_data  (out),
      .out_valid(load_order_valid),
      .out_ready(load_order_ready),
      .out_data (load_order)
  );

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  always_ff @(posedge clk)
    if (armed && !rst) begin
      assert (!(start && busy)) else $error("order: started while busy");
      assert (!(start && used == '0)) else $error("order: no expert has a queue");
      assert (!(start && summed != units)) else $error("order: started before the stride is known");
      assert (!(over && used != '0 && !by_length && !asking)) else $error("order: a queue was not named");
    end
`endif
endmodule
