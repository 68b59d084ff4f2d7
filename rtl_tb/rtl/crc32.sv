// CRC-32 (reflected, polynomial 0xEDB88320) over 8 bytes per cycle, least significant byte first. The share of the
// data is worked out one cycle ahead, so that only the state's own share lies in the loop.
module crc32 (
    input  logic        clk,
    input  logic        rst,
    input  logic        clear,  // back to the CRC of nothing; not while busy
    input  logic        valid,
    input  logic [63:0] data,
    output logic        busy,  // data accepted earlier is not yet in `crc`
    output logic [31:0] crc
);
  // 64 zero bits shifted in behind a state; linear, so it also gives the share of data bits.
  function automatic logic [31:0] advance(input logic [31:0] state, input logic [31:0] later);
    logic [31:0] rest;
    rest = state;
    for (int i = 0; i < 32; i = i + 1) rest = {1'b0, rest[31:1]} ^ (rest[0] ? 32'hedb88320 : 32'd0);
    rest = rest ^ later;
    for (int i = 0; i < 32; i = i + 1) rest = {1'b0, rest[31:1]} ^ (rest[0] ? 32'hedb88320 : 32'd0);
    advance = rest;
  endfunction

  logic [31:0] share, state;
  assign crc = ~state;
  always_ff @(posedge clk) begin
    if (valid) share <= advance(data[31:0], data[63:32]);
    busy <= !rst && valid;
    if (rst || clear) state <= '1;
    else if (busy) state <= advance(state, 32'd0) ^ share;
  end
endmodule
