// The route unit with the fields of its records as ports of their own, for test_route.py.
module route_bench (
    input  logic                               clk,
    input  logic                               rst,
    input  logic                               layer_valid,
    input  logic                               layer_job_end,
    input  logic [1:0]                         layer_kind,
    input  logic [engine_pkg::TOKEN_BITS-1:0]  layer_tokens,
    input  logic [engine_pkg::EXPERT_BITS-1:0] layer_expert_count,
    input  logic [engine_pkg::TOP_K_BITS-1:0]  layer_top_k,
    input  logic [3:0]                         layer_schedule,
    input  logic [7:0]                         layer_gate_shift,
    input  logic [7:0]                         layer_units,
    input  logic [engine_pkg::STRIPE_COUNT_BITS-1:0] layer_unit_stripes,
    input  logic [31:0]                        layer_weights,
    input  logic [engine_pkg::ENTRY_BITS-1:0]  entry,
    output logic                               layer_advance,
    output logic                               gate_ready,
    input  logic                               gate_reserve,
    input  logic                               gate_valid,
    input  logic [engine_pkg::TOKEN_BITS-1:0]  gate_token,
    input  logic [engine_pkg::TILE_BITS-1:0]   gate_tile,
    input  logic                               gate_last,
    input  logic [engine_pkg::O*32-1:0]        gate_logits,
    output logic [1:0]                         order_valid,  // {load, dispatch}
    input  logic [1:0]                         order_ready,
    output logic [1:0]                         order_last,
    output logic [1:0]                         order_resident,
    output logic [2*engine_pkg::EXPERT_BITS-1:0] order_expert,
    output logic [2*engine_pkg::TOKEN_BITS-1:0] order_count,
    output logic [2*engine_pkg::NODE_BITS-1:0] order_head,
    output logic [31:0]                        resident_query,
    input  logic                               resident_hit,
    input  logic                               walk_start,
    input  logic [engine_pkg::NODE_BITS-1:0]   walk_head,
    input  logic [engine_pkg::TOKEN_BITS-1:0]  walk_count,
    output logic                               walk_valid,
    input  logic                               walk_ready,
    output logic [engine_pkg::TOKEN_BITS-1:0]  walk_token,
    output logic [engine_pkg::WEIGHT17-1:0]    walk_weight,
    output logic                               append_valid,
    output logic [engine_pkg::TOKEN_BITS-1:0]  append_token,
    output logic                               layer_experts_valid,
    output logic [engine_pkg::ENTRY_BITS-1:0]  layer_experts_entry,
    output logic [engine_pkg::EXPERT_BITS-1:0] layer_experts,
    output logic                               job_crc_valid,
    output logic [engine_pkg::ENTRY_BITS-1:0]  job_crc_entry,
    output logic [31:0]                        job_crc,
    output logic                               routing
);
  engine_pkg::layer_t layer;
  engine_pkg::order_t dispatch_order, load_order;

  always_comb begin
    layer = '1;  // what the unit must not look at
    layer.job_end = layer_job_end;
    layer.kind = engine_pkg::kind_e'(layer_kind);
    layer.tokens = layer_tokens;
    layer.experts = layer_expert_count;
    layer.top_k = layer_top_k;
    layer.schedule = m3vit_pkg::schedule_e'(layer_schedule);
    layer.gate_shift = layer_gate_shift;
    layer.units = layer_units;
    layer.unit_stripes = layer_unit_stripes;
    layer.weights = layer_weights;
  end
  assign order_last = {load_order.last, dispatch_order.last};
  assign order_resident = {load_order.resident, dispatch_order.resident};
  assign order_expert = {load_order.expert, dispatch_order.expert};
  assign order_count = {load_order.count, dispatch_order.count};
  assign order_head = {load_order.head, dispatch_order.head};

  route u_route (
      .clk,
      .rst,
      .forget(1'b0),
      .layer_valid,
      .layer,
      .entry,
      .layer_advance,
      .gate_ready,
      .gate_reserve,
      .gate_valid,
      .gate_token,
      .gate_tile,
      .gate_last,
      .gate_logits,
      .dispatch_order_valid(order_valid[0]),
      .dispatch_order_ready(order_ready[0]),
      .dispatch_order,
      .load_order_valid    (order_valid[1]),
      .load_order_ready    (order_ready[1]),
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
endmodule
