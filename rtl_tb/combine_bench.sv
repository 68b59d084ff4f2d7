// combine and the wide store for test_combine.py; the finish unit's read port is the bench's.
module combine_bench (
    input  logic                                       clk,
    input  logic                                       rst,
    input  logic                                       combine_valid,
    input  logic [engine_pkg::WIDE_ADDRESS_BITS-1:0]   combine_row,
    input  logic [        engine_pkg::WEIGHT17-1:0]    combine_weight,
    input  logic                                       combine_fresh,
    input  logic [            engine_pkg::O*16-1:0]    combine_values,
    input  logic [  engine_pkg::WIDE_COUNT_BITS-1:0]   combine_completes,
    output logic [  engine_pkg::WIDE_COUNT_BITS-1:0]   completed,
    input  logic                                       finish_read,
    output logic                                       finish_read_ready,
    input  logic [engine_pkg::WIDE_ADDRESS_BITS-1:0]   finish_read_address,
    output logic [    engine_pkg::WIDE_ROW_BITS-1:0]   read_data
);
  logic read, write;
  logic [engine_pkg::WIDE_ADDRESS_BITS-1:0] read_address, write_address;
  logic [engine_pkg::WIDE_ROW_BITS-1:0] write_data;
  combine u_combine (.*);
  wide_store u_wide_store (
      .clk,
      .combine_read        (read),
      .combine_read_address(read_address),
      .finish_read,
      .finish_read_ready,
      .finish_read_address,
      .read_data,
      .write,
      .write_address,
      .write_data
  );
endmodule
