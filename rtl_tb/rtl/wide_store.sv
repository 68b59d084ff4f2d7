// Wide accumulators: a ring of WIDE_ROWS rows of O lanes. Whole multiples of 4096 rows, the depth of an UltraRAM, lie
// in UltraRAM, the rest in block RAM: 1,216 tokens of the larger engine would otherwise cost a third cascade step.
// One write port and one read port; reads of the combine unit go before those of the finish unit.
module wide_store (
    input  logic                                      clk,
    // Reads; data two cycles later, not registered after the choice between the two memories
    input  logic                                      combine_read,
    input  logic [engine_pkg::WIDE_ADDRESS_BITS-1:0]  combine_read_address,
    input  logic                                      finish_read,
    output logic                                      finish_read_ready,
    input  logic [engine_pkg::WIDE_ADDRESS_BITS-1:0]  finish_read_address,
    output logic [    engine_pkg::WIDE_ROW_BITS-1:0]  read_data,
    // Writes
    input  logic                                      write,
    input  logic [engine_pkg::WIDE_ADDRESS_BITS-1:0]  write_address,
    input  logic [    engine_pkg::WIDE_ROW_BITS-1:0]  write_data
);
  localparam int ADDRESS_BITS = engine_pkg::WIDE_ADDRESS_BITS;
  localparam int WIDTH = engine_pkg::WIDE_ROW_BITS;
  localparam int ULTRA_BITS = 12;
  localparam int ULTRA_ROWS = engine_pkg::WIDE_ROWS >> ULTRA_BITS << ULTRA_BITS;
  localparam int BLOCK_ROWS = engine_pkg::WIDE_ROWS - ULTRA_ROWS;
  localparam int BLOCK_DEPTH = BLOCK_ROWS < 2 ? 2 : BLOCK_ROWS;
  localparam int BLOCK_BITS = $clog2(BLOCK_DEPTH);

  logic read;
  logic [ADDRESS_BITS-1:0] read_address;
  assign finish_read_ready = !combine_read;
  assign read = combine_read || finish_read;
  assign read_address = combine_read ? combine_read_address : finish_read_address;

  logic [WIDTH-1:0] ultra_data, block_data;
  if (ULTRA_ROWS == 0) begin : g_block_only
    assign read_data = block_data;
    assign ultra_data = '0;
  end else if (BLOCK_ROWS == 0) begin : g_ultra_only
    assign read_data = ultra_data;
    assign block_data = '0;
  end else begin : g_both
    logic [1:0] in_block;  // of the reads of the last two cycles
    always_ff @(posedge clk) in_block <= {in_block[0], read_address >= ADDRESS_BITS'(ULTRA_ROWS)};
    assign read_data = in_block[1] ? block_data : ultra_data;
  end

  if (ULTRA_ROWS != 0) begin : g_ultra
    localparam int BITS = $clog2(ULTRA_ROWS);
    logic read_here, write_here;
    assign read_here = read && (BLOCK_ROWS == 0 || read_address < ADDRESS_BITS'(ULTRA_ROWS));
    assign write_here = write && (BLOCK_ROWS == 0 || write_address < ADDRESS_BITS'(ULTRA_ROWS));
    ram #(
        .WIDTH(WIDTH),
        .DEPTH(ULTRA_ROWS),
        .STYLE("ultra")
    ) u_ultra (
        .clk,
        .write        (write_here),
        .write_address(write_address[BITS-1:0]),
        .write_data,
        .read         (read_here),
        .read_address (read_address[BITS-1:0]),
        .read_data    (ultra_data)
    );
  end

  if (BLOCK_ROWS != 0) begin : g_block
    logic read_here, write_here;
    assign read_here = read && read_address >= ADDRESS_BITS'(ULTRA_ROWS);
    assign write_here = write && write_address >= ADDRESS_BITS'(ULTRA_ROWS);
    // The UltraRAM's rows are a multiple of a power of two, so the low bits count from the first row here.
    ram #(
        .WIDTH(WIDTH),
        .DEPTH(BLOCK_DEPTH)
    ) u_block (
        .clk,
        .write        (write_here),
        .write_address(write_address[BLOCK_BITS-1:0]),
        .write_data,
        .read         (read_here),
        .read_address (read_address[BLOCK_BITS-1:0]),
        .read_data    (block_data)
    );
  end
endmodule
