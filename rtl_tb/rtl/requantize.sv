// One lane of the drain: a sum of products becomes an accumulator (bias added), is shifted, rounded half to even and
// saturated.
//
// A negative shift multiplies, so the accumulator is taken 2^-SHIFT_MIN times as large and every shift goes right: by
// bytes, then by 0..7 bits. Of what falls off, the highest bit and whether any below it was set decide the rounding;
// a tie goes to the even neighbour. Stage k works when `stage[k]` says that a row is there: bias, bytes, bits, round,
// saturate.
module requantize (
    input  logic                                  clk,
    input  logic [                           4:0] stage,
    // With stage 0
    input  logic [  engine_pkg::PRODUCT_BITS-1:0] product,
    input  logic [      m3vit_pkg::BIAS_BITS-1:0] bias,
    input  logic [    engine_pkg::SHIFT_BITS-1:0] shift,
    // With stage 4
    input  logic                                  residual,  // saturate to the residual's width, not an activation's
    input  logic                                  narrow,  // an activation without its smallest value
    output logic [m3vit_pkg::ACCUMULATOR_BITS-1:0] accumulator,  // after stage 0
    output logic [   m3vit_pkg::RESIDUAL_BITS-1:0] value  // after stage 4
);
  localparam int ACCUMULATOR = m3vit_pkg::ACCUMULATOR_BITS;
  localparam int RESIDUAL = m3vit_pkg::RESIDUAL_BITS;
  localparam int ACTIVATION = m3vit_pkg::ACTIVATION_BITS;
  localparam int KEPT = RESIDUAL + 7;  // anything wider after the bytes saturates whatever the bits
  localparam logic [5:0] LEFT = 6'(-m3vit_pkg::SHIFT_MIN);  // a whole byte: `bytes` below relies on it

  // {lost bit, any lost below, does not fit KEPT, KEPT} of the accumulator << 8 >> 8 * count
  function automatic logic [KEPT+2:0] bytes(input logic [ACCUMULATOR-1:0] a, input logic [2:0] count);
    logic sign;
    sign = a[ACCUMULATOR-1];
    case (count)
      3'd0: bytes = {2'b00, a[31:14] != {18{sign}}, a[14:0], 8'd0};
      3'd1: bytes = {2'b00, a[31:22] != {10{sign}}, a[22:0]};
      3'd2: bytes = {a[7], a[6:0] != '0, a[31:30] != {2{sign}}, a[30:8]};
      3'd3: bytes = {a[15], a[14:0] != '0, 1'b0, {7{sign}}, a[31:16]};
      default: bytes = {a[23], a[22:0] != '0, 1'b0, {15{sign}}, a[31:24]};
    endcase
  endfunction

  // {lost bit, any lost below, KEPT} of the value and its lost bits >> count
  function automatic logic [KEPT+1:0] bits(input logic [KEPT+1:0] v, input logic [2:0] count);
    logic signed [KEPT+7:0] wide;  // value, lost bit, seven bits below
    wide = $signed({v[KEPT-1:0], v[KEPT+1], 7'd0}) >>> count;
    bits = {wide[7], v[KEPT] || wide[6:0] != '0, wide[KEPT+7:8]};
  endfunction

  function automatic logic [RESIDUAL-1:0] saturate(
      input logic [KEPT:0] v, input logic over, input logic sign, input logic wide, input logic no_lowest);
    logic fits_residual, fits_activation;
    fits_residual = v[KEPT:RESIDUAL-1] == {(KEPT - RESIDUAL + 2) {v[KEPT]}};
    fits_activation = v[KEPT:ACTIVATION-1] == {(KEPT - ACTIVATION + 2) {v[KEPT]}};
    if (wide)
      saturate = !over && fits_residual ? v[RESIDUAL-1:0] : {sign, {(RESIDUAL - 1) {!sign}}};
    else if (over || !fits_activation || (no_lowest && v[ACTIVATION-1] && v[ACTIVATION-2:0] == '0))
      saturate = {{(RESIDUAL - ACTIVATION + 1) {sign}}, {(ACTIVATION - 2) {!sign}}, !sign || no_lowest};
    else saturate = v[RESIDUAL-1:0];
  endfunction

  logic [5:0] amount0;
  logic [2:0] amount1;
  logic [KEPT-1:0] kept1, kept2;
  logic lost1, below1, over1, sign1, lost2, below2, over2, sign2, over3, sign3;
  logic signed [KEPT:0] rounded;

  always_ff @(posedge clk) begin
    if (stage[0]) begin
      accumulator <= ACCUMULATOR'($signed(product)) + bias;
      amount0 <= shift + LEFT;
    end
    if (stage[1]) begin
      {lost1, below1, over1, kept1} <= bytes(accumulator, amount0[5:3]);
      amount1 <= amount0[2:0];
      sign1 <= accumulator[ACCUMULATOR-1];
    end
    if (stage[2]) begin
      {lost2, below2, kept2} <= bits({lost1, below1, kept1}, amount1);
      over2 <= over1;
      sign2 <= sign1;
    end
    if (stage[3]) begin
      rounded <= (KEPT + 1)'($signed(kept2)) + (KEPT + 1)'({1'b0, lost2 && (below2 || kept2[0])});
      over3 <= over2;
      sign3 <= sign2;
    end
    if (stage[4]) value <= saturate(rounded, over3, sign3, residual, narrow);
  end
endmodule
