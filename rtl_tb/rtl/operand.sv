// Token operands of the array: the operand ring (lines of T tokens side by side) and the hidden tile. Select a beat, and its
// T x I bytes are there three cycles later, together with the weight row read in the same cycle.
module operand (
    input  logic                                        clk,
    // Lines from the input store
    input  logic                                        line_write,
    input  logic [         engine_pkg::LANE_BITS-1:0]   line_lane,
    input  logic [engine_pkg::OPERAND_GROUP_BITS-1:0]   line_group,
    input  logic [         engine_pkg::LINE_BITS-1:0]   line_data,
    // Blocks of hidden values from the drain
    input  logic                                        hidden_write,
    input  logic [         engine_pkg::LANE_BITS-1:0]   hidden_lane,
    input  logic [ engine_pkg::HIDDEN_BLOCK_BITS-1:0]   hidden_block,
    input  logic [                  engine_pkg::O*8-1:0] hidden_data,
    // Beat
    input  logic                                        select,
    input  logic                                        select_hidden,
    input  logic [engine_pkg::OPERAND_GROUP_BITS-1:0]   select_group,
    input  logic [    engine_pkg::LINE_BEAT_BITS-1:0]   select_beat,  // within the line
    input  logic [ engine_pkg::HIDDEN_BLOCK_BITS-1:0]   select_block,
    input  logic [$clog2(engine_pkg::BLOCK_BEATS+1)-1:0] select_block_beat,
    output logic [      engine_pkg::OPERAND_BITS-1:0]   data
);
  localparam int T = engine_pkg::T;
  localparam int BEAT = engine_pkg::I * 8;
  localparam int LB = engine_pkg::LANE_BITS;
  localparam int HB = engine_pkg::HIDDEN_BLOCK_BITS;
  localparam int BB = $clog2(engine_pkg::BLOCK_BEATS + 1);

  logic select1, hidden1, select2, hidden2;
  logic [engine_pkg::OPERAND_GROUP_BITS-1:0] group1;
  logic [engine_pkg::LINE_BEAT_BITS-1:0] beat1, beat2;
  logic [HB-1:0] block1;
  logic [BB-1:0] block_beat1, block_beat2;
  always_ff @(posedge clk) begin
    select1 <= select;
    hidden1 <= select_hidden;
    select2 <= select1;
    hidden2 <= hidden1;
    if (select) begin
      group1 <= select_group;
      beat1 <= select_beat;
      block1 <= select_block;
      block_beat1 <= select_block_beat;
    end
    beat2 <= beat1;
    block_beat2 <= block_beat1;
  end

  for (genvar t = 0; t < T; t = t + 1) begin : g_lane
    logic [engine_pkg::LINE_BITS-1:0] line, line2;
    logic [engine_pkg::O*8-1:0] block, block2;
    ram_distributed #(
        .WIDTH(engine_pkg::LINE_BITS),
        .DEPTH(engine_pkg::OPERAND_GROUPS)
    ) u_lines (
        .clk,
        .write        (line_write && line_lane == LB'(t)),
        .write_address(line_group),
        .write_data   (line_data),
        .read_address (group1),
        .read_data    (line)
    );
    ram_distributed #(
        .WIDTH(engine_pkg::O * 8),
        .DEPTH(1 << HB)
    ) u_hidden (
        .clk,
        .write        (hidden_write && hidden_lane == LB'(t)),
        .write_address(hidden_block),
        .write_data   (hidden_data),
        .read_address (block1),
        .read_data    (block)
    );
    always_ff @(posedge clk) begin
      if (select1 && !hidden1) line2 <= line;
      if (select1 && hidden1) block2 <= block;
      if (select2) data[t*BEAT+:BEAT] <= hidden2 ? block2[block_beat2*BEAT+:BEAT] : line2[beat2*BEAT+:BEAT];
    end
  end
endmodule
