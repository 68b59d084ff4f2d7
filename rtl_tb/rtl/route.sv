// Routing of MOE layers: gate logits -> top-k -> softmax -> token queues -> order of experts. One layer at a time; its
// shape is taken over when the unit comes to the layer, whose gate rows may be there already. Other entries are passed
// at once; at a JOB_END the CRC over all queue entries of the job is handed out.
module route (
    input  logic                                clk,
    input  logic                                rst,
    input  logic                                forget,  // start of a program: no job has an entry yet
    // Entry table
    input  logic                                layer_valid,
    /* verilator lint_off UNUSEDSIGNAL */
    input  engine_pkg::layer_t                  layer,  // few of its fields matter here
    /* verilator lint_on UNUSEDSIGNAL */
    input  logic [engine_pkg::ENTRY_BITS-1:0]   entry,
    output logic                                layer_advance,
    // Gate logits from the drain
    output logic                                gate_ready,  // room for the rows of one more token tile
    input  logic                                gate_reserve,  // a token tile is on its way
    input  logic                                gate_valid,
    input  logic [engine_pkg::TOKEN_BITS-1:0]   gate_token,
    input  logic [engine_pkg::TILE_BITS-1:0]    gate_tile,
    input  logic                                gate_last,
    input  logic [engine_pkg::O*32-1:0]         gate_logits,
    // Order of experts
    output logic                                dispatch_order_valid,
    input  logic                                dispatch_order_ready,
    output engine_pkg::order_t                  dispatch_order,
    output logic                                load_order_valid,
    input  logic                                load_order_ready,
    output engine_pkg::order_t                  load_order,
    output logic [31:0]                         resident_query,  // arena offset of a unit
    input  logic                                resident_hit,  // it is in a slot; same cycle
    // Queues
    input  logic                                walk_start,
    input  logic [engine_pkg::NODE_BITS-1:0]    walk_head,
    input  logic [engine_pkg::TOKEN_BITS-1:0]   walk_count,
    output logic                                walk_valid,
    input  logic                                walk_ready,
    output logic [engine_pkg::TOKEN_BITS-1:0]   walk_token,
    output logic [engine_pkg::WEIGHT17-1:0]     walk_weight,
    output logic                                append_valid,  // pulse per token, at its first append
    output logic [engine_pkg::TOKEN_BITS-1:0]   append_token,
    // For the record
    output logic                                layer_experts_valid,
    output logic [engine_pkg::ENTRY_BITS-1:0]   layer_experts_entry,
    output logic [engine_pkg::EXPERT_BITS-1:0]  layer_experts,  // that have a queue
    output logic                                job_crc_valid,
    output logic [engine_pkg::ENTRY_BITS-1:0]   job_crc_entry,
    output logic [31:0]                         job_crc,
    output logic                                routing  // from the first gate tile of a layer to its first expert
);
  localparam int TB = engine_pkg::TOKEN_BITS;
  localparam int EB = engine_pkg::EXPERT_BITS;
  localparam int RB = engine_pkg::RANK_BITS;
  localparam int NB = engine_pkg::NODE_BITS;
  localparam int INDEX_BITS = $clog2(m3vit_pkg::MAX_EXPERTS);

  // ---- the layer at hand
  logic open, settling, active;  // shape taken over; two cycles for what derives from it
  logic enter, leave, finished, weights_done;
  logic [TB-1:0] tokens;
  logic [EB-1:0] experts;
  logic [engine_pkg::TOP_K_BITS-1:0] top_k;
  logic signed [7:0] gate_shift;
  m3vit_pkg::schedule_e schedule;
  logic [31:0] weights;
  logic [7:0] units;
  logic [engine_pkg::STRIPE_COUNT_BITS-1:0] unit_stripes;
  logic [engine_pkg::ENTRY_BITS-1:0] open_entry;
  logic is_moe, pass;
  logic ordered, order_busy, order_start, order_first, crc_busy;
  logic [31:0] crc;  // over all queue entries of the job so far
  logic [EB-1:0] used;  // experts with a queue that have not been named
  assign is_moe = !layer.job_end && layer.kind == engine_pkg::KIND_MOE;
  assign pass = layer_valid && !is_moe;
  assign enter = layer_valid && is_moe && !open;
  assign leave = open && finished;
  assign layer_advance = pass || leave;

  always_ff @(posedge clk) begin
    if (enter) begin
      tokens <= layer.tokens;
      experts <= layer.experts;
      top_k <= layer.top_k;
      gate_shift <= layer.gate_shift;
      schedule <= layer.schedule;
      weights <= layer.weights;
      units <= layer.units;
      unit_stripes <= layer.unit_stripes;
      open_entry <= entry;
    end
    if (rst) {open, settling, active, finished} <= '0;
    else begin
      open <= enter || (open && !leave);
      settling <= open && !leave;
      active <= settling && !leave;
      finished <= active && !leave && ordered && !order_busy && weights_done && !crc_busy;
    end
    job_crc_valid <= !rst && pass && layer.job_end;
    if (pass && layer.job_end) begin
      job_crc_entry <= entry;
      job_crc <= crc;
    end
  end

  // ---- logits, token by token
  logic first_token, word_valid, word_first, word_last;
  logic [INDEX_BITS-1:0] word_expert;
  logic [m3vit_pkg::TOPK_LANES-1:0] word_mask;
  logic [m3vit_pkg::TOPK_LANES*32-1:0] word_logits;
  gate_buffer u_buffer (
      .clk,
      .rst,
      .gate_reserve,
      .gate_ready,
      .gate_valid,
      .gate_token,
      .gate_tile,
      .gate_last,
      .gate_logits,
      .active,
      .tokens,
      .experts,
      .top_k,
      .first_token,
      .word_valid,
      .word_first,
      .word_last,
      .word_expert,
      .word_mask,
      .word_logits
  );

  // ---- chosen experts
  logic chosen_valid, chosen_first, chosen_last;
  logic [INDEX_BITS-1:0] chosen_expert;
  logic [31:0] chosen_logit;
  topk u_topk (
      .clk,
      .rst,
      .top_k,
      .word_valid,
      .word_first,
      .word_last,
      .word_expert,
      .word_mask,
      .word_logits,
      .chosen_valid,
      .chosen_first,
      .chosen_last,
      .chosen_expert,
      .chosen_logit
  );

  // They join their queues before their weights are known: the order of experts does not depend on weights.
  logic [TB-1:0] chosen_token;
  logic [RB-1:0] chosen_rank;
  logic all_appended1, all_appended2;
  always_ff @(posedge clk) begin
    if (first_token) begin
      chosen_token <= '0;
      chosen_rank <= '0;
    end else if (chosen_valid) begin
      chosen_token <= chosen_token + TB'(chosen_last);
      chosen_rank <= chosen_last ? '0 : chosen_rank + 1'b1;
    end
    append_valid <= !rst && chosen_valid && chosen_first;
    if (chosen_valid && chosen_first) append_token <= chosen_token;
    // The last append, and when bitmap and counts know of it.
    if (rst) {all_appended1, all_appended2, order_start} <= '0;
    else begin
      all_appended1 <= chosen_valid && chosen_last && chosen_token == tokens - 1'b1;
      all_appended2 <= all_appended1;
      order_start <= all_appended2;
    end
    ordered <= active && (ordered || order_start);
    layer_experts_valid <= !rst && order_start;
    if (order_start) {layer_experts_entry, layer_experts} <= {open_entry, used};
    if (rst || order_first) routing <= 1'b0;
    else if (gate_reserve) routing <= 1'b1;
  end

  // ---- weights
  logic weight_valid, weight_last;
  logic [INDEX_BITS-1:0] weight_expert;
  logic [15:0] weight;
  logic [TB-1:0] weight_token;
  logic [RB-1:0] weight_rank;
  gate_softmax u_softmax (
      .clk,
      .rst,
      .gate_shift,
      .experts,
      .top_k,
      .word_valid,
      .word_mask,
      .word_logits,
      .chosen_valid,
      .chosen_first,
      .chosen_expert,
      .chosen_logit,
      .weight_valid,
      .weight_expert,
      .weight
  );
  assign weight_last = engine_pkg::TOP_K_BITS'(weight_rank) == top_k - 1'b1;
  always_ff @(posedge clk) begin
    if (first_token) begin
      weight_token <= '0;
      weight_rank <= '0;
    end else if (weight_valid) begin
      weight_token <= weight_token + TB'(weight_last);
      weight_rank <= weight_last ? '0 : weight_rank + 1'b1;
    end
    weights_done <= active && (weights_done || (weight_valid && weight_last && weight_token == tokens - 1'b1));
  end

  crc32 u_crc (
      .clk,
      .rst,
      .clear(forget || (pass && layer.job_end)),
      .valid(weight_valid),
      .data ({32'(weight), 16'(weight_token), 16'(weight_expert)}),
      .busy (crc_busy),
      .crc
  );

  // ---- queues and the order in which they are computed
  logic [INDEX_BITS-1:0] scan_expert, take_expert;
  logic scan_used, take_valid;
  logic [TB-1:0] scan_count;
  logic [NB-1:0] scan_head;
  queues u_queues (
      .clk,
      .rst,
      .append_valid  (chosen_valid),
      .append_expert (chosen_expert),
      .append_node   ({chosen_token, chosen_rank}),
      .weight_valid,
      .weight_node   ({weight_token, weight_rank}),
      .weight,
      .weights_tokens(weight_token),
      .scan_expert,
      .scan_used,
      .scan_count,
      .scan_head,
      .take_valid,
      .take_expert,
      .used,
      .walk_start,
      .walk_head,
      .walk_count,
      .walk_valid,
      .walk_ready,
      .walk_token,
      .walk_weight
  );

  order u_order (
      .clk,
      .rst,
      .start      (order_start),
      .busy       (order_busy),
      .experts,
      .schedule,
      .weights,
      .units,
      .unit_stripes,
      .layer_start(open && !settling),
      .scan_expert,
      .scan_used,
      .scan_count,
      .scan_head,
      .take_valid,
      .take_expert,
      .used,
      .resident_query,
      .resident_hit,
      .first      (order_first),
      .dispatch_order_valid,
      .dispatch_order_ready,
      .dispatch_order,
      .load_order_valid,
      .load_order_ready,
      .load_order
  );

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  logic order_stalled, load_stalled, walk_stalled;
  engine_pkg::order_t dispatch_order_before, load_order_before;
  logic [TB+engine_pkg::WEIGHT17-1:0] walk_before;
  always_ff @(posedge clk) begin
    order_stalled <= !rst && dispatch_order_valid && !dispatch_order_ready;
    load_stalled <= !rst && load_order_valid && !load_order_ready;
    walk_stalled <= !rst && walk_valid && !walk_ready;
    {dispatch_order_before, load_order_before} <= {dispatch_order, load_order};
    walk_before <= {walk_token, walk_weight};
    if (armed && !rst) begin
      assert (!order_stalled || (dispatch_order_valid && dispatch_order == dispatch_order_before))
        else $error("route: dispatch_order changed while it waited");
      assert (!load_stalled || (load_order_valid && load_order == load_order_before))
        else $error("route: load_order changed while it waited");
      assert (!walk_stalled || (walk_valid && {walk_token, walk_weight} == walk_before))
        else $error("route: walk entry changed while it waited");
      assert (!(chosen_valid && !active)) else $error("route: a token is routed without a layer");
    end
  end
`endif
endmodule
