// 1 / value ~ factor * 2^-(31 + exponent) for 2^15 <= value < 2^24 (numeric contract, section 5): m = value >>
// exponent lies in [2^15, 2^16), factor = 2^31 / m rounded down. A division of radix 4, one digit per stage; a value
// may enter every cycle. Latency 11 cycles.
module reciprocal (
    input  logic        clk,
    input  logic        rst,
    input  logic        in_valid,
    input  logic [23:0] value,
    output logic        out_valid,
    output logic [16:0] factor,
    output logic [3:0]  exponent
);
  localparam int DIGITS = 8;

  // ---- normalize
  logic n_valid, m_valid;
  logic [3:0] n_exponent, m_exponent, position;
  logic [23:0] n_value;
  logic [15:0] m_value;
  always_comb begin
    position = '0;
    for (int i = 16; i < 24; i = i + 1) if (value[i]) position = 4'(i - 15);
  end
  always_ff @(posedge clk) begin
    if (in_valid) {n_exponent, n_value} <= {position, value};
    if (n_valid) {m_exponent, m_value} <= {n_exponent, 16'(n_value >> n_exponent)};
  end

  // ---- divide: before digit i the rest is below m and 2^31 = quotient * m * 4^(8-i) + rest * 4^(8-i)
  logic [DIGITS:0] valids;
  logic [(DIGITS+1)*4-1:0] exponents;
  logic [(DIGITS+1)*16-1:0] divisors, rests;
  logic [(DIGITS+1)*18-1:0] triples;
  logic [(DIGITS+1)*17-1:0] quotients;

  always_ff @(posedge clk) begin
    {n_valid, m_valid, valids[0]} <= rst ? '0 : {in_valid, n_valid, m_valid};
    if (m_valid) begin
      exponents[3:0] <= m_exponent;
      divisors[15:0] <= m_value;
      triples[17:0] <= 18'(m_value) + {1'b0, m_value, 1'b0};
      // 2^15 / m is 1 only for m = 2^15.
      quotients[16:0] <= 17'(m_value == 16'h8000);
      rests[15:0] <= m_value == 16'h8000 ? '0 : 16'h8000;
    end
  end

  for (genvar i = 0; i < DIGITS; i = i + 1) begin : g_digit
    logic [15:0] divisor;
    logic [17:0] triple, partial;
    logic [18:0] minus1, minus2, minus3;  // top bit: too much
    assign divisor = divisors[i*16+:16];
    assign triple = triples[i*18+:18];
    assign partial = {rests[i*16+:16], 2'b00};
    assign minus1 = {1'b0, partial} - 19'(divisor);
    assign minus2 = {1'b0, partial} - {2'b00, divisor, 1'b0};
    assign minus3 = {1'b0, partial} - {1'b0, triple};
    always_ff @(posedge clk) begin
      valids[i+1] <= !rst && valids[i];
      if (valids[i]) begin
        exponents[(i+1)*4+:4] <= exponents[i*4+:4];
        divisors[(i+1)*16+:16] <= divisor;
        triples[(i+1)*18+:18] <= triple;
        if (!minus3[18]) begin
          rests[(i+1)*16+:16] <= minus3[15:0];
          quotients[(i+1)*17+:17] <= {quotients[i*17+:15], 2'd3};
        end else if (!minus2[18]) begin
          rests[(i+1)*16+:16] <= minus2[15:0];
          quotients[(i+1)*17+:17] <= {quotients[i*17+:15], 2'd2};
        end else if (!minus1[18]) begin
          rests[(i+1)*16+:16] <= minus1[15:0];
          quotients[(i+1)*17+:17] <= {quotients[i*17+:15], 2'd1};
        end else begin
          rests[(i+1)*16+:16] <= partial[15:0];
          quotients[(i+1)*17+:17] <= {quotients[i*17+:15], 2'd0};
        end
      end
    end

    /* verilator lint_off UNUSEDSIGNAL */
    logic unused;  // a rest is below the divisor
    assign unused = ^{minus1[17:16], minus2[17:16], minus3[17:16], partial[17:16], quotients[i*17+15+:2]};
    /* verilator lint_on UNUSEDSIGNAL */
  end

  assign out_valid = valids[DIGITS];
  assign factor = quotients[DIGITS*17+:17];
  assign exponent = exponents[DIGITS*4+:4];

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  always_ff @(posedge clk)
    if (armed && !rst && in_valid) assert (value >= 24'h8000) else $error("reciprocal: value below 2^15");
`endif

  /* verilator lint_off UNUSEDSIGNAL */
  logic unused;  // of the last digit
  assign unused = ^{divisors[DIGITS*16+:16], triples[DIGITS*18+:18], rests[DIGITS*16+:16], n_value};
  /* verilator lint_on UNUSEDSIGNAL */
endmodule
