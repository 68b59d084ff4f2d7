// Fills weight slots in the order in which the array will need them: per layer the gate table, then every unit of every
// scheduled expert. Runs ahead across units, layers, frames and tasks as far as slots are free.
module load (
    input  logic                                                           clk,
    input  logic                                                           rst,
    input  logic                                                           forget,  // start of a program: slots hold nothing
    // Layers
    input  logic                                                           layer_valid,
    // verilator lint_off UNUSEDSIGNAL
    input  engine_pkg::layer_t                                             layer,  // most of it concerns others
    // verilator lint_on UNUSEDSIGNAL
    output logic                                                           layer_advance,
    input  logic                                                           computed,  // everything before this entry
    // Order of experts, and whether a unit is in a slot (for the order that asks)
    input  logic                                                           order_valid,
    output logic                                                           order_ready,
    // verilator lint_off UNUSEDSIGNAL
    input  engine_pkg::order_t                                             order,  // queues are for others
    // verilator lint_on UNUSEDSIGNAL
    input  logic [31:0]                                                    resident_query,
    // verilator lint_off UNUSEDSIGNAL
    input  engine_pkg::layer_t                                             resident_layer,  // that the query is about
    // verilator lint_on UNUSEDSIGNAL
    output logic                                                           resident_hit,
    // Stripes
    output logic                                                           request_valid,
    input  logic                                                           request_ready,
    output logic [31:0]                                                    request_offset,
    // Lines
    input  logic                                                           line_valid,
    output logic                                                           line_ready,
    input  logic [engine_pkg::LINE_BITS-1:0]                               line_data,
    // Slots in the order of use, how far they are filled, and when they are free again
    output logic                                                           slot_valid,
    input  logic                                                           slot_ready,
    output logic [engine_pkg::SLOT_BITS-1:0]                               slot,
    output logic [m3vit_pkg::WEIGHT_SLOTS*engine_pkg::SLOT_ROW_BITS-1:0]   rows_filled,
    output logic [m3vit_pkg::WEIGHT_SLOTS-1:0]                             gelu_filled,
    input  logic                                                           unit_done,
    input  logic [engine_pkg::SLOT_BITS-1:0]                               unit_slot,
    // Stores
    output logic                                                           row_write,
    output logic [engine_pkg::WEIGHT_ADDRESS_BITS-1:0]                     row_address,
    output logic [engine_pkg::ROW_BITS-1:0]                                row_data,
    output logic                                                           group_write,
    output logic [engine_pkg::GROUP_ADDRESS_BITS-1:0]                      group_address,
    output logic [engine_pkg::GROUP_BITS-1:0]                              group_data,
    output logic                                                           gelu_write,
    output logic [engine_pkg::SLOT_BITS-1:0]                               gelu_slot,
    output logic [7:0]                                                     gelu_address,
    output logic [7:0]                                                     gelu_data
);
  localparam int SLOTS = m3vit_pkg::WEIGHT_SLOTS;
  localparam int SB = engine_pkg::SLOT_BITS;
  localparam int CB = engine_pkg::STRIPE_COUNT_BITS;
  localparam int BYTE_BITS = engine_pkg::STRIPE_BYTE_BITS;
  localparam int USER_BITS = 4;
  // What tells units apart: place in memory and shape. Another shape at the same place is another unit.
  localparam int KEY = CB + 1 + CB + 2 * engine_pkg::BEAT_BITS + engine_pkg::TILE_BITS;

  typedef enum logic [2:0] {
    IDLE,
    ORDER,  // next expert
    PRODUCT,  // its number of units before
    OFFSET,  // in stripes
    ACQUIRE,  // a slot
    REQUEST  // its stripes
  } state_e;
  state_e state;

  logic gate;  // the unit at hand is a gate table
  logic resident, last_expert, last_unit;
  logic [engine_pkg::EXPERT_BITS-1:0] expert;
  logic [7:0] unit;
  logic [engine_pkg::EXPERT_BITS+7:0] units_before;
  logic [CB-1:0] offset;  // of the unit, in stripes
  logic [CB-1:0] remaining;

  // ---- slots
  logic [SLOTS*KEY-1:0] tags;
  logic [KEY-1:0] key, query;
  assign key = {offset, gate, layer.unit_stripes, layer.input_beats, layer.hidden_beats, layer.unit_tiles};
  assign query = {
    CB'(resident_query >> BYTE_BITS), 1'b0, resident_layer.unit_stripes, resident_layer.input_beats,
    resident_layer.hidden_beats, resident_layer.unit_tiles
  };
  logic [SLOTS-1:0] marked;
  logic [SLOTS*USER_BITS-1:0] users;
  logic [SB-1:0] candidate, hit_slot, chosen;
  logic [SLOTS-1:0] hits, queries;
  logic push_ready, describe_ready, acquire, found;

  for (genvar s = 0; s < SLOTS; s = s + 1) begin : g_slot
    logic release_slot, claim;
    assign hits[s] = marked[s] && tags[s*KEY+:KEY] == key;
    assign queries[s] = marked[s] && tags[s*KEY+:KEY] == query;
    assign claim = acquire && chosen == SB'(s);
    assign release_slot = unit_done && unit_slot == SB'(s);
    always_ff @(posedge clk) begin
      if (claim && !resident) tags[s*KEY+:KEY] <= key;
      if (rst) users[s*USER_BITS+:USER_BITS] <= '0;
      else users[s*USER_BITS+:USER_BITS] <= users[s*USER_BITS+:USER_BITS] + USER_BITS'(claim) - USER_BITS'(release_slot);
      if (rst || forget) marked[s] <= 1'b0;
      else if (claim && !resident) marked[s] <= 1'b1;
    end
`ifndef SYNTHESIS
    logic armed;  // before the first reset, values mean nothing
    initial armed = 1'b0;
    always_ff @(posedge clk) if (rst) armed <= 1'b1;
    always_ff @(posedge clk)
      if (armed && !rst) assert (!release_slot || users[s*USER_BITS+:USER_BITS] != '0) else $error("load: slot freed twice");
`endif
  end
  assign resident_hit = queries != '0;
  always_comb begin
    hit_slot = '0;
    for (int s = 0; s < SLOTS; s = s + 1) if (hits[s]) hit_slot = SB'(s);
  end
  assign found = resident ? hits != '0 : users[candidate*USER_BITS+:USER_BITS] == '0;
  assign chosen = resident ? hit_slot : candidate;
  assign acquire = state == ACQUIRE && found && push_ready && describe_ready;

  // ---- sequence of units
  assign last_unit = gate || unit == layer.units - 8'd1;
  assign order_ready = state == ORDER;
  assign request_valid = state == REQUEST;
  assign layer_advance = layer_valid && ((state == IDLE && layer.job_end)
      || (!gate && last_expert && last_unit
          && ((acquire && resident) || (request_valid && request_ready && remaining == CB'(1)))));

  logic unit_over;  // nothing more to do for the unit at hand
  assign unit_over = (acquire && resident) || (request_valid && request_ready && remaining == CB'(1));

  always_ff @(posedge clk) begin
    case (state)
      IDLE: begin
        gate <= layer.kind == engine_pkg::KIND_MOE;
        resident <= 1'b0;
        last_expert <= layer.kind != engine_pkg::KIND_MOE;
        unit <= 8'd0;
        offset <= layer.kind == engine_pkg::KIND_MOE ? CB'(layer.gate >> BYTE_BITS) : CB'(layer.weights >> BYTE_BITS);
      end
      ORDER: begin
        gate <= 1'b0;
        resident <= order.resident;
        last_expert <= order.last;
        expert <= order.expert;
        unit <= 8'd0;
      end
      PRODUCT: units_before <= expert * layer.units;
      OFFSET: offset <= CB'(layer.weights >> BYTE_BITS) + CB'(units_before) * layer.unit_stripes;
      ACQUIRE: begin
        request_offset <= {offset[31-BYTE_BITS:0], {BYTE_BITS{1'b0}}};
        remaining <= gate ? layer.gate_stripes : layer.unit_stripes;
      end
      REQUEST:
      if (request_ready) begin
        request_offset <= request_offset + 32'(m3vit_pkg::STRIPE_BYTES);
        remaining <= remaining - 1'b1;
      end
      default: ;
    endcase
    if (unit_over) begin
      unit <= unit + 8'd1;
      offset <= offset + layer.unit_stripes;
    end
    // Slots are taken in turn; a slot that is still in use is passed over.
    if (rst) candidate <= '0;
    else if (state == ACQUIRE && !resident && (acquire || !found))
      candidate <= candidate == SB'(SLOTS - 1) ? '0 : candidate + 1'b1;
    if (rst) state <= IDLE;
    else
      case (state)
        IDLE: if (layer_valid && !layer.job_end && (!layer.no_prefetch || computed)) state <= ACQUIRE;
        ORDER: if (order_valid) state <= PRODUCT;
        PRODUCT: state <= OFFSET;
        OFFSET: state <= ACQUIRE;
        default:
        if (unit_over)
          state <= gate ? ORDER : !last_unit ? ACQUIRE : last_expert ? IDLE : ORDER;
        else if (acquire) state <= REQUEST;
      endcase
  end

  fifo #(
      .WIDTH(SB),
      .DEPTH(1 << $clog2(SLOTS + 1))
  ) u_slots (
      .clk,
      .rst,
      .in_valid (acquire),
      .in_ready (push_ready),
      .in_data  (chosen),
      .out_valid(slot_valid),
      .out_ready(slot_ready),
      .out_data (slot)
  );

  // ---- decoder
  load_decode u_decode (
      .clk,
      .rst,
      .unit_valid  (acquire && !resident),
      .unit_ready  (describe_ready),
      .unit_slot   (chosen),
      .gelu        (!gate && layer.hidden_tiles != '0),
      .first_tiles (gate ? '0 : layer.hidden_tiles),
      .first_beats (layer.input_beats),
      .second_tiles(gate ? layer.gate_tiles : last_unit ? layer.last_tiles : layer.unit_tiles),
      .second_beats(!gate && layer.hidden_tiles != '0 ? layer.hidden_beats : layer.input_beats),
      .stripes     (gate ? layer.gate_stripes : layer.unit_stripes),
      .line_valid,
      .line_ready,
      .line_data,
      .rows_filled,
      .gelu_filled,
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
endmodule
