// Output-stationary MAC array: T tokens x O outputs, I products each per beat, two products per DSP48E2.
//
// Two tokens share a multiplier. Their operand is (a1 << 18) + a0, so one 27 x 8 bit product holds a1*w above a0*w. A
// cascade of I DSPs adds the products of a beat; weights are narrow (never -128), so the low sum stays below 2^17 and
// its sign tells whether it borrowed from the high one. Accumulators are in the fabric. Input i enters the cascade i
// cycles after input 0. Every stage is a register that the DSP has: A and B (one for all DSPs that use a value), M, P.
//
// `done` comes with the sums of the tile whose last beat was I + 5 cycles ago. They stay until the next `done`.
//
// Registers of one kind lie side by side, outputs innermost: compiled for simulation, neighbours become lanes of vector
// instructions, which makes this unit four times faster than with a module per cascade, whose ports break that up.
module mac_array (
    input  logic                                clk,
    input  logic                                rst,
    input  logic                                beat,
    input  logic                                beat_first,  // of a tile
    input  logic                                beat_last,
    input  logic [engine_pkg::OPERAND_BITS-1:0] operand,  // byte t*I + i
    input  logic [    engine_pkg::ROW_BITS-1:0] weights,  // byte o*I + i
    output logic                                done,
    output logic [ engine_pkg::RESULT_BITS-1:0] result  // lane t*O + o
);
  localparam int T = engine_pkg::T;
  localparam int O = engine_pkg::O;
  localparam int I = engine_pkg::I;
  localparam int PAIRS = T / 2;
  localparam int SUM = engine_pkg::PRODUCT_BITS;
  localparam int LOW = 18;  // field of the low product and of the low sum of I of them
  localparam int PAIR = LOW + 9;  // A port of the DSP
  localparam int PRODUCT = PAIR + 8;
  localparam int CASCADE = PRODUCT + 1;
  localparam int STAGES = I + 3;  // from a beat to the end of the cascade

  // --- Control: travels beside the data; data registers stand still when nothing is on its way.
  logic [STAGES-1:0] valid, first, last;
  logic result_next;
  logic [$clog2(STAGES+1)-1:0] ahead;
  (* max_fanout = 64 *) logic enable;

  always_ff @(posedge clk) begin
    first <= {first[STAGES-2:0], beat_first};
    last  <= {last[STAGES-2:0], beat_last};
    if (rst) begin
      valid <= '0;
      result_next <= 1'b0;
      done <= 1'b0;
      ahead <= '0;
      enable <= 1'b0;
    end else begin
      valid <= {valid[STAGES-2:0], beat};
      result_next <= valid[STAGES-1] && last[STAGES-1];
      done <= result_next;
      enable <= beat || ahead != '0;
      if (beat) ahead <= ($bits(ahead))'(STAGES);
      else if (ahead != '0) ahead <= ahead - 1'b1;
    end
  end

  // --- Weights: stage i holds what inputs i, i + 1 ... of every output wait for; byte 0 goes on to the DSPs.
  for (genvar i = 0; i < I; i = i + 1) begin : g_weight
    for (genvar o = 0; o < O; o = o + 1) begin : g_output
      logic [8*(I-i)-1:0] rest;
      if (i == 0) begin : g_enter
        always_ff @(posedge clk) if (beat) rest <= weights[8*o*I+:8*I];
      end else begin : g_wait
        always_ff @(posedge clk) if (enable) rest <= g_weight[i-1].g_output[o].rest[8*(I-i)+7:8];
      end
    end
  end

  // --- Operands: pairs are packed once, before they fan out over the outputs; input i waits i cycles.
  for (genvar s = 0; s < I; s = s + 1) begin : g_operand
    for (genvar t = 0; t < PAIRS; t = t + 1) begin : g_pair
      for (genvar i = s; i < I; i = i + 1) begin : g_input
        logic signed [PAIR-1:0] pair;
        if (s == 0) begin : g_enter
          always_ff @(posedge clk)
            if (beat)
              pair <= PAIR'($signed({operand[8*((2*t+1)*I+i)+:8], {LOW{1'b0}}}))
                    + PAIR'($signed(operand[8*(2*t*I+i)+:8]));
        end else begin : g_wait
          always_ff @(posedge clk) if (enable) pair <= g_operand[s-1].g_pair[t].g_input[i].pair;
        end
      end
    end
  end

  // --- A and B registers of the DSPs: one for all outputs, one for all pairs.
  for (genvar i = 0; i < I; i = i + 1) begin : g_a
    for (genvar t = 0; t < PAIRS; t = t + 1) begin : g_pair
      logic signed [PAIR-1:0] a;
      always_ff @(posedge clk) if (enable) a <= g_operand[i].g_pair[t].g_input[i].pair;
    end
  end
  for (genvar i = 0; i < I; i = i + 1) begin : g_b
    for (genvar o = 0; o < O; o = o + 1) begin : g_output
      logic signed [7:0] b;
      always_ff @(posedge clk) if (enable) b <= g_weight[i].g_output[o].rest[7:0];
    end
  end

  // --- Cascades of I DSPs and accumulators, one for every pair of tokens and output.
  for (genvar t = 0; t < PAIRS; t = t + 1) begin : g_pair
    for (genvar i = 0; i < I; i = i + 1) begin : g_m
      for (genvar o = 0; o < O; o = o + 1) begin : g_output
        logic signed [PRODUCT-1:0] m;
        always_ff @(posedge clk) if (enable) m <= g_a[i].g_pair[t].a * g_b[i].g_output[o].b;
      end
    end
    for (genvar i = 0; i < I; i = i + 1) begin : g_p
      for (genvar o = 0; o < O; o = o + 1) begin : g_output
        logic signed [CASCADE-1:0] p;
        if (i == 0) begin : g_head
          always_ff @(posedge clk) if (enable) p <= CASCADE'(g_m[i].g_output[o].m);
        end else begin : g_next
          always_ff @(posedge clk)
            if (enable) p <= g_p[i-1].g_output[o].p + CASCADE'(g_m[i].g_output[o].m);
        end
      end
    end
    for (genvar o = 0; o < O; o = o + 1) begin : g_low
      logic signed [SUM-1:0] sum;
      always_ff @(posedge clk)
        if (valid[STAGES-1])
          sum <= (first[STAGES-1] ? '0 : sum) + SUM'($signed(g_p[I-1].g_output[o].p[LOW-1:0]));
    end
    for (genvar o = 0; o < O; o = o + 1) begin : g_high
      logic signed [SUM-1:0] sum;
      always_ff @(posedge clk)
        if (valid[STAGES-1])
          sum <= (first[STAGES-1] ? '0 : sum) + SUM'($signed(g_p[I-1].g_output[o].p[CASCADE-1:LOW]))
               + SUM'(g_p[I-1].g_output[o].p[LOW-1]);
    end
    for (genvar o = 0; o < O; o = o + 1) begin : g_result
      always_ff @(posedge clk)
        if (result_next) begin
          result[(2*t*O+o)*SUM+:SUM] <= g_low[o].sum;
          result[((2*t+1)*O+o)*SUM+:SUM] <= g_high[o].sum;
        end
    end
  end
endmodule
