// Combine weights of the chosen experts: softmax over all experts of a token, read at the chosen ones (numeric
// contract, section 8). The words of a token's logits wait until the sorter has found the largest; then they are
// replayed for the sum of the powers, while a lane of its own computes the powers of the chosen ones. Nothing stalls.
module gate_softmax (
    input  logic                                 clk,
    input  logic                                 rst,
    // Layer, stable while a token is on its way
    input  logic signed [7:0]                    gate_shift,
    input  logic [engine_pkg::EXPERT_BITS-1:0]   experts,
    input  logic [engine_pkg::TOP_K_BITS-1:0]    top_k,
    // All logits, and the chosen ones best first, some cycles later
    input  logic                                 word_valid,
    input  logic [m3vit_pkg::TOPK_LANES-1:0]     word_mask,
    input  logic [m3vit_pkg::TOPK_LANES*32-1:0]  word_logits,
    input  logic                                 chosen_valid,
    input  logic                                 chosen_first,
    input  logic [$clog2(m3vit_pkg::MAX_EXPERTS)-1:0] chosen_expert,
    input  logic [31:0]                          chosen_logit,
    // Weights in the same order, one per cycle
    output logic                                 weight_valid,
    output logic [$clog2(m3vit_pkg::MAX_EXPERTS)-1:0] weight_expert,
    output logic [15:0]                          weight
);
  localparam int LANES = m3vit_pkg::TOPK_LANES;
  localparam int LANE_BITS = $clog2(LANES);
  localparam int EB = engine_pkg::EXPERT_BITS;
  localparam int KB = engine_pkg::TOP_K_BITS;
  localparam int INDEX_BITS = $clog2(m3vit_pkg::MAX_EXPERTS);
  localparam int WORD_BITS = EB - LANE_BITS + 1;
  localparam int MAX_WORDS = (m3vit_pkg::MAX_EXPERTS + LANES - 1) / LANES;
  localparam int WORD_DEPTH = 1 << $clog2(MAX_WORDS + 16);  // a token, and those read while its last word is sorted
  localparam int STAGES = 6;  // of exp2_lane
  localparam int SUM_STAGES = STAGES + LANE_BITS;

  logic [5:0] amount;
  logic [WORD_BITS-1:0] words;
  always_ff @(posedge clk) begin
    amount <= 6'(gate_shift - 8'(m3vit_pkg::OCTAVE_SHIFT_MIN));
    words <= WORD_BITS'((experts + EB'(LANES - 1)) >> LANE_BITS);
  end

  // ---- replay
  logic [31:0] peak, replay_peak;
  logic [WORD_BITS-1:0] left;  // words to replay
  logic pop, replay_first, replay_last;
  logic [LANES-1:0] popped_mask, replay_mask;
  logic [LANES*32-1:0] popped_logits, replay_logits;
  logic words_ready, words_there;
  assign pop = left != '0;
  fifo #(
      .WIDTH(LANES * 33),
      .DEPTH(WORD_DEPTH)
  ) u_words (
      .clk,
      .rst,
      .in_valid (word_valid),
      .in_ready (words_ready),
      .in_data  ({word_mask, word_logits}),
      .out_valid(words_there),
      .out_ready(pop),
      .out_data ({popped_mask, popped_logits})
  );
  always_ff @(posedge clk) begin
    if (chosen_valid && chosen_first) peak <= chosen_logit;
    if (pop) begin
      {replay_mask, replay_logits} <= {popped_mask, popped_logits};
      replay_peak <= peak;
      replay_first <= left == words;
      replay_last <= left == WORD_BITS'(1);
    end
    if (rst) left <= '0;
    else if (chosen_valid && chosen_first) left <= words;
    else if (pop) left <= left - 1'b1;
  end

  // ---- sum of the powers
  logic [SUM_STAGES:0] stage_valid, stage_first, stage_last;  // bit i: in front of stage i
  // A heap: sum n is that of sums 2n and 2n + 1; from n = LANES on they are the powers of the lanes. n = 1 lies lowest.
  logic [(2*LANES-1)*24-1:0] sums;
  for (genvar i = 0; i < LANES; i = i + 1) begin : g_lane
    logic [15:0] lane_power;
    exp2_lane u_lane (
        .clk,
        .enable(stage_valid[STAGES-1:0]),
        .keep  (replay_mask[i]),
        .peak  (replay_peak),
        .logit (replay_logits[i*32+:32]),
        .amount,
        .power (lane_power)
    );
    assign sums[(LANES-1+i)*24+:24] = 24'(lane_power);
  end
  for (genvar n = 1; n < LANES; n = n + 1) begin : g_sum
    localparam int STAGE = STAGES + LANE_BITS - $clog2(n + 1);
    always_ff @(posedge clk)
      if (stage_valid[STAGE]) sums[(n-1)*24+:24] <= sums[(2*n-1)*24+:24] + sums[2*n*24+:24];
  end
  logic [23:0] total;
  logic total_valid;
  always_ff @(posedge clk) begin
    stage_valid[SUM_STAGES:1] <= rst ? '0 : stage_valid[SUM_STAGES-1:0];
    stage_valid[0] <= !rst && pop;
    stage_first[SUM_STAGES:1] <= stage_first[SUM_STAGES-1:0];
    stage_last[SUM_STAGES:1] <= stage_last[SUM_STAGES-1:0];
    if (stage_valid[SUM_STAGES])
      total <= sums[23:0] + (stage_first[SUM_STAGES] ? '0 : total);
    total_valid <= !rst && stage_valid[SUM_STAGES] && stage_last[SUM_STAGES];
  end
  assign stage_first[0] = replay_first;
  assign stage_last[0] = replay_last;

  logic reciprocal_valid;
  logic [16:0] reciprocal_factor;
  logic [3:0] reciprocal_exponent;
  reciprocal u_reciprocal (
      .clk,
      .rst,
      .in_valid (total_valid),
      .value    (total),
      .out_valid(reciprocal_valid),
      .factor   (reciprocal_factor),
      .exponent (reciprocal_exponent)
  );

  // ---- powers of the chosen experts, waiting for the reciprocal
  logic [STAGES:0] chosen_stage;  // bit i: in front of stage i
  logic [(STAGES+1)*INDEX_BITS-1:0] chosen_experts;
  logic [31:0] chosen_wait;
  logic [15:0] chosen_power, power;
  logic powers_ready, power_there, take;
  logic [INDEX_BITS-1:0] expert;
  exp2_lane u_chosen (
      .clk,
      .enable(chosen_stage[STAGES-1:0]),
      .keep  (1'b1),
      .peak,
      .logit (chosen_wait),
      .amount,
      .power (chosen_power)
  );
  always_ff @(posedge clk) begin
    if (chosen_valid) chosen_wait <= chosen_logit;
    chosen_stage <= rst ? '0 : {chosen_stage[STAGES-1:0], chosen_valid};
    chosen_experts <= {chosen_experts[STAGES*INDEX_BITS-1:0], chosen_expert};
  end
  // At most 40 wait: top_k of every token that fits between its sorting and its reciprocal.
  fifo #(
      .WIDTH(INDEX_BITS + 16),
      .DEPTH(64)
  ) u_powers (
      .clk,
      .rst,
      .in_valid (chosen_stage[STAGES]),
      .in_ready (powers_ready),
      .in_data  ({chosen_experts[STAGES*INDEX_BITS+:INDEX_BITS], chosen_power}),
      .out_valid(power_there),
      .out_ready(take),
      .out_data ({expert, power})
  );

  // ---- weight = min(65535, RHE(power * factor, 15 + exponent))
  logic [KB-1:0] ranks;  // of the token at hand, still to do
  logic [16:0] factor;
  logic [3:0] exponent;
  assign take = ranks != '0;

  logic [5:1] w_valid;
  logic [5*INDEX_BITS-1:0] w_expert;
  logic [15:0] w_power;
  logic [16:0] w_factor;
  logic [32:0] product1, product2, product3, rounded, shifted;
  logic [23:0] increment;
  logic [3:0] e1, e2, e3, e4, e5;
  assign shifted = rounded >> (5'd15 + 5'(e5));
  always_ff @(posedge clk) begin
    if (reciprocal_valid) {factor, exponent} <= {reciprocal_factor, reciprocal_exponent};
    if (rst) ranks <= '0;
    else if (reciprocal_valid) ranks <= top_k;
    else if (take) ranks <= ranks - 1'b1;

    w_valid <= rst ? '0 : {w_valid[4:1], take};
    w_expert <= {w_expert[4*INDEX_BITS-1:0], expert};
    if (take) {w_power, w_factor, e1} <= {power, factor, exponent};
    if (w_valid[1]) {product1, e2} <= {33'(w_power) * 33'(w_factor), e1};
    if (w_valid[2]) {product2, e3} <= {product1, e2};
    if (w_valid[3]) begin
      // Half to even: half - 1, and one more if the bit that will become the last is set.
      increment <= (24'h4000 << e3) - 24'd1 + 24'(product2[6'd15+6'(e3)]);
      {product3, e4} <= {product2, e3};
    end
    if (w_valid[4]) {rounded, e5} <= {product3 + 33'(increment), e4};
    if (w_valid[5]) begin
      weight <= shifted[32:16] != '0 ? 16'hffff : shifted[15:0];
      weight_expert <= w_expert[4*INDEX_BITS+:INDEX_BITS];
    end
    weight_valid <= !rst && w_valid[5];
  end

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  always_ff @(posedge clk)
    if (armed && !rst) begin
      assert (!(word_valid && !words_ready)) else $error("gate_softmax: too many words wait");
      assert (!(pop && !words_there)) else $error("gate_softmax: no word to replay");
      assert (!(chosen_stage[STAGES] && !powers_ready)) else $error("gate_softmax: too many powers wait");
      assert (!(take && !power_there)) else $error("gate_softmax: no power for a weight");
      assert (!(reciprocal_valid && ranks > KB'(1))) else $error("gate_softmax: tokens follow each other too fast");
    end
`endif

  /* verilator lint_off UNUSEDSIGNAL */
  logic unused;  // what only assertions look at
  assign unused = ^{words_ready, words_there, powers_ready, power_there};
  /* verilator lint_on UNUSEDSIGNAL */
endmodule
