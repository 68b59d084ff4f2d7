// GELU by table for all lanes: each has a copy of every slot's table, all written together, each read with its own
// value. Data come two cycles after `read`.
module gelu_table (
    input  logic                               clk,
    input  logic                               write,
    input  logic [  engine_pkg::SLOT_BITS-1:0] write_slot,
    input  logic [                        7:0] write_address,  // value + 128
    input  logic [                        7:0] write_data,
    input  logic                               read,
    input  logic [  engine_pkg::SLOT_BITS-1:0] read_slot,
    input  logic [      engine_pkg::O*8-1:0] read_values,
    output logic [      engine_pkg::O*8-1:0] read_data
);
  localparam int DEPTH = m3vit_pkg::WEIGHT_SLOTS * 256;

  for (genvar o = 0; o < engine_pkg::O; o = o + 1) begin : g_lane
    ram #(
        .WIDTH(8),
        .DEPTH(DEPTH)
    ) table_copy (
        .clk,
        .write,
        .write_address($clog2(DEPTH)'({write_slot, write_address})),
        .write_data,
        .read,
        // Adding 128 turns the sign bit over.
        .read_address($clog2(DEPTH)'({read_slot, !read_values[8*o+7], read_values[8*o+:7]})),
        .read_data(read_data[8*o+:8])
    );
  end
endmodule
