// How one unit sees the table of commands in flight: a copy of its memory, a pointer of the unit's own, and the entry
// there in registers. An entry shows up two cycles after it was pushed or after the unit advanced to it.
module entry_view (
    input  logic                              clk,
    input  logic                              rst,
    // Pushes; one bit more than an entry tells full from empty
    input  logic                              push,
    input  engine_pkg::layer_t                push_layer,
    input  logic [engine_pkg::ENTRY_BITS:0]   head,
    output logic [engine_pkg::ENTRY_BITS:0]   pointer,
    // The unit's side
    output logic                              layer_valid,
    output engine_pkg::layer_t                layer,
    output logic [engine_pkg::ENTRY_BITS-1:0] entry,
    input  logic                              advance
);
  localparam int EB = engine_pkg::ENTRY_BITS;
  localparam int LAYER_BITS = engine_pkg::LAYER_BITS;

  logic [LAYER_BITS-1:0] stored;
  ram_distributed #(
      .WIDTH(LAYER_BITS),
      .DEPTH(engine_pkg::ENTRIES)
  ) u_memory (
      .clk,
      .write        (push),
      .write_address(head[EB-1:0]),
      .write_data   (push_layer),
      .read_address (pointer[EB-1:0]),
      .read_data    (stored)
  );

  assign entry = pointer[EB-1:0];

  always_ff @(posedge clk) begin
    if (!layer_valid) layer <= stored;
    if (rst) begin
      pointer <= '0;
      layer_valid <= 1'b0;
    end else if (layer_valid) begin
      if (advance) begin
        pointer <= pointer + 1'b1;
        layer_valid <= 1'b0;
      end
    end else begin
      layer_valid <= pointer != head;
    end
  end

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) begin
    if (rst) armed <= 1'b1;
    if (armed && !rst && advance && !layer_valid) $error("entry_view: advanced past the last entry");
  end
`endif
endmodule
