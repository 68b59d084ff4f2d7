// Ring of input lines: written as they arrive, read by the gather unit two cycles after it asks.
module input_store (
    input  logic                                   clk,
    input  logic                                   rst,
    input  logic                                   write,
    input  logic [      engine_pkg::LINE_BITS-1:0] write_data,
    input  logic                                   read,
    input  logic [engine_pkg::STORE_LINE_BITS-1:0] read_address,
    output logic [      engine_pkg::LINE_BITS-1:0] read_data
);
  logic [engine_pkg::STORE_LINE_BITS-1:0] head;
  always_ff @(posedge clk) begin
    if (rst) head <= '0;
    else if (write)
      head <= head == engine_pkg::STORE_LINE_BITS'(engine_pkg::STORE_LINES - 1) ? '0 : head + 1'b1;
  end

  ram #(
      .WIDTH(engine_pkg::LINE_BITS),
      .DEPTH(engine_pkg::STORE_LINES)
  ) u_lines (
      .clk,
      .write,
      .write_address(head),
      .write_data,
      .read,
      .read_address,
      .read_data
  );
endmodule
