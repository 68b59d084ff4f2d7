// 2^(logit - peak) in Q15 (numeric contract, sections 7 and 8): u = (peak - logit) * 2^-shift rounded down, then
// EXP2[u mod 256] >> (u / 256), and 0 from u = 4096 on. Six stages; `enable` bit i clocks stage i.
module exp2_lane (
    input  logic        clk,
    input  logic [5:0]  enable,
    input  logic        keep,  // 0: the result is 0
    input  logic [31:0] peak,
    input  logic [31:0] logit,
    input  logic [5:0]  amount,  // shift - OCTAVE_SHIFT_MIN: 0 .. 47; constant over a layer
    output logic [15:0] power
);
  localparam int LEFT = -m3vit_pkg::OCTAVE_SHIFT_MIN;  // everything is shifted left by this first
  localparam int WIDE = 32 + LEFT;

  logic [31:0] distance;  // at most 2^32 - 1
  logic [WIDE-1:0] coarse, middle;
  logic [11:0] index;
  logic [3:0] octave;
  logic [15:0] mantissa;
  logic keep0, keep1, keep2, keep3, keep4;

  always_ff @(posedge clk) begin
    if (enable[0]) begin
      distance <= peak - logit;
      keep0 <= keep;
    end
    if (enable[1]) begin
      coarse <= {distance, LEFT'(0)} >> {amount[5:4], 4'd0};
      keep1 <= keep0;
    end
    if (enable[2]) begin
      middle <= coarse >> {amount[3:2], 2'd0};
      keep2 <= keep1;
    end
    if (enable[3]) begin
      index <= 12'(middle >> amount[1:0]);
      keep3 <= keep2 && (middle >> amount[1:0]) < WIDE'(4096);
    end
    if (enable[4]) begin
      mantissa <= m3vit_pkg::EXP2[{index[7:0], 4'd0}+:16];
      octave <= index[11:8];
      keep4 <= keep3;
    end
    if (enable[5]) power <= keep4 ? mantissa >> octave : '0;
  end
endmodule
