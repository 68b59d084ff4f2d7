// First-word fall-through FIFO in registers or distributed memory. DEPTH is a power of two.
module fifo #(
    parameter int WIDTH = 8,
    parameter int DEPTH = 4
) (
    input  logic             clk,
    input  logic             rst,
    input  logic             in_valid,
    output logic             in_ready,
    input  logic [WIDTH-1:0] in_data,
    output logic             out_valid,
    input  logic             out_ready,
    output logic [WIDTH-1:0] out_data
);
  localparam int BITS = $clog2(DEPTH);
  (* ram_style = "distributed" *) logic [WIDTH-1:0] memory[DEPTH];
  logic [BITS:0] head, tail;  // one bit more than an address, to tell full from empty

  assign in_ready = (head - tail) != (BITS + 1)'(DEPTH);
  assign out_valid = head != tail;
  assign out_data = memory[tail[BITS-1:0]];

  always_ff @(posedge clk) begin
    if (in_valid && in_ready) memory[head[BITS-1:0]] <= in_data;
    if (rst) begin
      head <= '0;
      tail <= '0;
    end else begin
      if (in_valid && in_ready) head <= head + 1'b1;
      if (out_valid && out_ready) tail <= tail + 1'b1;
    end
  end
endmodule
