// Adds weight * value to every lane of an accumulator row: a contribution per cycle, whose row is read one cycle and
// written six cycles after it came. A `fresh` row starts from zero, so rows need no clearing. The residual is not in
// the rows; the finish unit adds it, and hears of rows that are complete once they are written.
module combine (
    input  logic                                      clk,
    input  logic                                      rst,
    // Contributions
    input  logic                                      combine_valid,
    input  logic [engine_pkg::WIDE_ADDRESS_BITS-1:0]  combine_row,
    input  logic [        engine_pkg::WEIGHT17-1:0]   combine_weight,
    input  logic                                      combine_fresh,
    input  logic [              engine_pkg::O*16-1:0] combine_values,
    input  logic [  engine_pkg::WIDE_COUNT_BITS-1:0]  combine_completes,
    // Wide store: data two cycles after read
    output logic                                      read,
    output logic [engine_pkg::WIDE_ADDRESS_BITS-1:0]  read_address,
    input  logic [    engine_pkg::WIDE_ROW_BITS-1:0]  read_data,
    output logic                                      write,
    output logic [engine_pkg::WIDE_ADDRESS_BITS-1:0]  write_address,
    output logic [    engine_pkg::WIDE_ROW_BITS-1:0]  write_data,
    // Rows that became complete with this cycle's write
    output logic [  engine_pkg::WIDE_COUNT_BITS-1:0]  completed
);
  localparam int O = engine_pkg::O;
  localparam int WIDE = engine_pkg::WIDE_BITS;
  localparam int PRODUCT = 16 + engine_pkg::WEIGHT17 + 1;
  localparam int STAGES = 6;  // input, two operand registers, product and row, sum, write

  // Stage s of these belongs to the contribution that came s + 1 cycles ago.
  logic [STAGES-1:0] valid;
  logic [2:0] fresh;
  logic [STAGES-1:0][engine_pkg::WIDE_ADDRESS_BITS-1:0] row;
  logic [STAGES-1:0][engine_pkg::WIDE_COUNT_BITS-1:0] completes;
  logic [2:0][engine_pkg::WEIGHT17-1:0] weight;
  logic [O*16-1:0] values0, values1, values2;

  always_ff @(posedge clk) begin
    if (rst) valid <= '0;
    else valid <= {valid[STAGES-2:0], combine_valid};
    fresh <= {fresh[1:0], combine_fresh};
    if (combine_valid) begin
      row[0] <= combine_row;
      completes[0] <= combine_completes;
      weight[0] <= combine_weight;
      values0 <= combine_values;
    end
    for (int s = 1; s < STAGES; s = s + 1)
      if (valid[s-1]) begin
        row[s] <= row[s-1];
        completes[s] <= completes[s-1];
      end
    if (valid[0]) begin
      weight[1] <= weight[0];
      values1 <= values0;
    end
    if (valid[1]) begin
      weight[2] <= weight[1];
      values2 <= values1;
    end
  end

  assign read = valid[0] && !fresh[0];
  assign read_address = row[0];
  assign write = valid[5];
  assign write_address = row[5];
  assign completed = valid[5] ? completes[5] : '0;

  // Per lane: what a DSP48E2 holds (operands, product, row in C, sum), then a register on the way to the memories.
  for (genvar o = 0; o < O; o = o + 1) begin : g_lane
    logic signed [PRODUCT-1:0] product;
    logic signed [WIDE-1:0] old, sum, result;
    always_ff @(posedge clk) begin
      if (valid[2]) begin
        product <= PRODUCT'($signed(values2[o*16+:16])) * PRODUCT'($signed({1'b0, weight[2]}));
        old <= fresh[2] ? '0 : read_data[o*WIDE+:WIDE];
      end
      if (valid[3]) sum <= old + WIDE'(product);
      if (valid[4]) result <= sum;
    end
    assign write_data[o*WIDE+:WIDE] = result;
  end

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  always_ff @(posedge clk)
    if (armed && !rst && combine_valid)
      assert (int'(combine_row) < engine_pkg::WIDE_ROWS) else $error("combine: no such row");
  for (genvar s = 0; s < STAGES - 1; s = s + 1) begin : g_distance
    // A row read before its last sum is written would lose that sum.
    always_ff @(posedge clk)
      if (armed && !rst && combine_valid && valid[s] && !combine_fresh)
        assert (row[s] != combine_row) else $error("combine: a row came back after %0d cycles", s + 1);
  end
`endif
endmodule
