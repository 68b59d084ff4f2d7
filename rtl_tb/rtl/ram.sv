// One write port, one read port with two registers behind it (memory and output): data two cycles after read.
module ram #(
    parameter int WIDTH = 8,
    parameter int DEPTH = 16,
    // verilator lint_off UNUSEDPARAM
    parameter STYLE = "block"  // or "ultra"; only synthesis reads it
    // verilator lint_on UNUSEDPARAM
) (
    input  logic                     clk,
    input  logic                     write,
    input  logic [$clog2(DEPTH)-1:0] write_address,
    input  logic [WIDTH-1:0]         write_data,
    input  logic                     read,
    input  logic [$clog2(DEPTH)-1:0] read_address,
    output logic [WIDTH-1:0]         read_data
);
  (* ram_style = STYLE *) logic [WIDTH-1:0] memory[DEPTH];
  logic [WIDTH-1:0] fetched;

  always_ff @(posedge clk) begin
    if (write) memory[write_address] <= write_data;
    if (read) fetched <= memory[read_address];
    read_data <= fetched;
  end
endmodule
