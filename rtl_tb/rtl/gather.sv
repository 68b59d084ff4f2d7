// Copies the input lines of a tile from the ring into the operand ring, line 0 of every token first, so that the array may
// start on a tile whose last lines are still being copied. Tokens lie anywhere; nothing is copied in the ring itself.
module gather (
    input  logic                                                 clk,
    input  logic                                                 rst,
    // Tiles
    input  logic                                                 tile_valid,
    output logic                                                 tile_ready,
    input  logic [engine_pkg::COUNT_BITS-1:0]                    tile_count,
    input  logic [engine_pkg::INPUT_LINE_BITS-1:0]               tile_lines,
    input  logic [engine_pkg::T*engine_pkg::STORE_LINE_BITS-1:0] tile_address,
    input  logic [engine_pkg::STORE_COUNT_BITS-1:0]              tile_frees,
    // Input ring
    output logic                                                 read,
    output logic [engine_pkg::STORE_LINE_BITS-1:0]               read_address,
    output logic [engine_pkg::STORE_COUNT_BITS-1:0]              freed,  // lines given back in this cycle
    // Operand ring: lane and line group that the data read two cycles ago belong to
    output logic                                                 write,
    output logic [engine_pkg::LANE_BITS-1:0]                     write_lane,
    output logic [engine_pkg::OPERAND_GROUP_BITS-1:0]            write_group,
    output logic [engine_pkg::OPERAND_GROUP_BITS:0]              filled,  // groups complete, running count
    input  logic                                                 group_freed
);
  localparam int SB = engine_pkg::STORE_LINE_BITS;
  localparam int LB = engine_pkg::LANE_BITS;
  localparam int GB = engine_pkg::OPERAND_GROUP_BITS;
  localparam int T = engine_pkg::T;

  logic busy, room, last_lane, last_line, over;
  logic [engine_pkg::COUNT_BITS-1:0] count;
  logic [engine_pkg::INPUT_LINE_BITS-1:0] lines, line;
  logic [LB-1:0] lane;
  logic [T*SB-1:0] address;  // next line of every lane
  logic [engine_pkg::STORE_COUNT_BITS-1:0] frees;
  logic [GB:0] head, used;  // group being filled; groups taken

  assign room = used != (GB + 1)'(engine_pkg::OPERAND_GROUPS);
  assign read = busy && room;
  assign last_lane = engine_pkg::COUNT_BITS'(lane) == count - 1'b1;
  assign last_line = line == lines - 1'b1;
  assign over = read && last_lane && last_line;
  assign read_address = address[lane*SB+:SB];
  assign tile_ready = !busy || over;
  assign freed = over ? frees : '0;

  always_ff @(posedge clk) begin
    if (tile_valid && tile_ready) begin
      count <= tile_count;
      lines <= tile_lines;
      address <= tile_address;
      frees <= tile_frees;
    end else if (read)
      address[lane*SB+:SB] <= read_address == SB'(engine_pkg::STORE_LINES - 1) ? '0 : read_address + 1'b1;
    if (rst) begin
      busy <= 1'b0;
      lane <= '0;
      line <= '0;
      head <= '0;
      used <= '0;
    end else begin
      if (tile_valid && tile_ready) busy <= 1'b1;
      else if (over) busy <= 1'b0;
      if (read) lane <= last_lane ? '0 : lane + 1'b1;
      if (read && last_lane) line <= last_line ? '0 : line + 1'b1;
      if (read && last_lane) head <= head + 1'b1;
      used <= used + (GB + 1)'(read && last_lane) - (GB + 1)'(group_freed);
    end
  end

  // The store answers after two cycles.
  logic read1, last1, last2;
  logic [LB-1:0] lane1;
  logic [GB-1:0] group1;
  always_ff @(posedge clk) begin
    read1 <= !rst && read;
    last1 <= read && last_lane;
    lane1 <= lane;
    group1 <= head[GB-1:0];
    write <= !rst && read1;
    last2 <= last1;
    write_lane <= lane1;
    write_group <= group1;
    if (rst) filled <= '0;
    else if (write && last2) filled <= filled + 1'b1;
  end

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  always_ff @(posedge clk)
    if (armed && !rst) assert (used <= (GB + 1)'(engine_pkg::OPERAND_GROUPS)) else $error("gather: operand ring overrun");
`endif
endmodule
