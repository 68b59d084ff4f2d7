// Distributed memory: one write port, one asynchronous read port.
module ram_distributed #(
    parameter int WIDTH = 8,
    parameter int DEPTH = 16
) (
    input  logic                     clk,
    input  logic                     write,
    input  logic [$clog2(DEPTH)-1:0] write_address,
    input  logic [WIDTH-1:0]         write_data,
    input  logic [$clog2(DEPTH)-1:0] read_address,
    output logic [WIDTH-1:0]         read_data
);
  (* ram_style = "distributed" *) logic [WIDTH-1:0] memory[DEPTH];

  assign read_data = memory[read_address];
  always_ff @(posedge clk) if (write) memory[write_address] <= write_data;
endmodule
