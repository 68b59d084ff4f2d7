// One lane of the finish unit: sat16(round half to even((residual * 2^FRACTION + value) / 2^FRACTION)) in three cycles.
// The residual has no fraction, so only the accumulator's fraction decides about rounding, with the sum's lowest bit.
module finish_lane #(
    parameter int WIDE = 36,
    parameter int FRACTION = 16
) (
    input  logic            clk,
    input  logic [     2:0] enable,  // of the three stages
    input  logic [WIDE-1:0] value,
    input  logic [    15:0] residual,
    input  logic            keep,  // 0: the lane is padding, its result 0
    output logic [    15:0] result
);
  localparam int WHOLE = WIDE - FRACTION;
  localparam int SUM = (WHOLE > 16 ? WHOLE : 16) + 1;

  logic signed [WHOLE-1:0] whole;
  logic signed [15:0] addend;
  logic up, keep1, keep2;
  logic signed [SUM-1:0] sum;
  logic odd, half, below;  // of the exact sum: its lowest bit, and its fraction's
  assign odd = value[FRACTION] ^ residual[0];
  assign half = value[FRACTION-1];
  assign below = |value[FRACTION-2:0];

  always_ff @(posedge clk) begin
    if (enable[0]) begin
      whole <= value[WIDE-1:FRACTION];
      addend <= residual;
      up <= half && (odd || below);
      keep1 <= keep;
    end
    if (enable[1]) begin
      sum <= SUM'(whole) + SUM'(addend) + $signed({{SUM - 1{1'b0}}, up});
      keep2 <= keep1;
    end
    if (enable[2]) begin
      if (!keep2) result <= '0;
      else if (sum > SUM'(32767)) result <= 16'h7fff;
      else if (sum < -SUM'(32768)) result <= 16'h8000;
      else result <= sum[15:0];
    end
  end
endmodule
