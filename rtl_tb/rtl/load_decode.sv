// Takes the lines of units apart (docs/formats.md, section 2): GELU table, then per output tile a parameter group and its
// rows, then padding. Tells per slot how many rows are there, so that the array may follow the loader row by row.
module load_decode (
    input  logic                                                         clk,
    input  logic                                                         rst,
    // Units, in the order of their lines
    input  logic                                                         unit_valid,
    output logic                                                         unit_ready,
    input  logic [engine_pkg::SLOT_BITS-1:0]                             unit_slot,
    input  logic                                                         gelu,
    input  logic [engine_pkg::TILE_BITS-1:0]                             first_tiles,
    input  logic [engine_pkg::BEAT_BITS-1:0]                             first_beats,
    input  logic [engine_pkg::TILE_BITS-1:0]                             second_tiles,
    input  logic [engine_pkg::BEAT_BITS-1:0]                             second_beats,
    input  logic [engine_pkg::STRIPE_COUNT_BITS-1:0]                     stripes,
    // Lines
    input  logic                                                         line_valid,
    output logic                                                         line_ready,
    input  logic [engine_pkg::LINE_BITS-1:0]                             line_data,
    // Progress per slot; a slot given to a unit starts empty
    output logic [m3vit_pkg::WEIGHT_SLOTS*engine_pkg::SLOT_ROW_BITS-1:0] rows_filled,
    output logic [m3vit_pkg::WEIGHT_SLOTS-1:0]                           gelu_filled,
    // Stores
    output logic                                                         row_write,
    output logic [engine_pkg::WEIGHT_ADDRESS_BITS-1:0]                   row_address,
    output logic [engine_pkg::ROW_BITS-1:0]                              row_data,
    output logic                                                         group_write,
    output logic [engine_pkg::GROUP_ADDRESS_BITS-1:0]                    group_address,
    output logic [engine_pkg::GROUP_BITS-1:0]                            group_data,
    output logic                                                         gelu_write,
    output logic [engine_pkg::SLOT_BITS-1:0]                             gelu_slot,
    output logic [7:0]                                                   gelu_address,
    output logic [7:0]                                                   gelu_data
);
  localparam int SLOTS = m3vit_pkg::WEIGHT_SLOTS;
  localparam int SB = engine_pkg::SLOT_BITS;
  localparam int RB = engine_pkg::SLOT_ROW_BITS;
  localparam int TB = engine_pkg::TILE_BITS;
  localparam int BB = engine_pkg::BEAT_BITS;
  localparam int LB = engine_pkg::LINE_BITS;
  localparam int O = engine_pkg::O;
  localparam int LINES_BITS = engine_pkg::STRIPE_COUNT_BITS + engine_pkg::STRIPE_LINE_BITS;
  localparam int PIECE = engine_pkg::GELU_LINES > engine_pkg::GROUP_LINES
      ? (engine_pkg::GELU_LINES > engine_pkg::ROW_LINES ? engine_pkg::GELU_LINES : engine_pkg::ROW_LINES)
      : (engine_pkg::GROUP_LINES > engine_pkg::ROW_LINES ? engine_pkg::GROUP_LINES : engine_pkg::ROW_LINES);
  localparam int PIECE_BITS = $clog2(PIECE + 1);

  // ---- units on their way
  logic there, over;
  logic [SB-1:0] slot;
  logic with_gelu;
  logic [TB-1:0] tiles1, tiles2;
  logic [BB-1:0] beats1, beats2;
  logic [engine_pkg::STRIPE_COUNT_BITS-1:0] unit_stripes;
  fifo #(
      .WIDTH(SB + 1 + 2 * TB + 2 * BB + engine_pkg::STRIPE_COUNT_BITS),
      .DEPTH(1 << $clog2(SLOTS + 1))
  ) u_units (
      .clk,
      .rst,
      .in_valid (unit_valid),
      .in_ready (unit_ready),
      .in_data  ({unit_slot, gelu, first_tiles, second_tiles, first_beats, second_beats, stripes}),
      .out_valid(there),
      .out_ready(over),
      .out_data ({slot, with_gelu, tiles1, tiles2, beats1, beats2, unit_stripes})
  );

  // ---- walk over the lines of a unit
  typedef enum logic [1:0] {
    GELU,
    GROUP,
    ROWS,
    PADDING
  } part_e;
  part_e part;
  logic started;
  logic [LINES_BITS-1:0] lines;  // still to come, this one included
  logic [PIECE_BITS-1:0] line;  // within the table, group or row
  logic [TB-1:0] tile, group;
  logic second, last_tile;
  logic [BB-1:0] beat;
  logic [RB-1:0] row;
  logic take, table_busy, piece_over;
  assign line_ready = started && !(part == GELU && table_busy);
  assign take = line_valid && line_ready;
  assign over = take && lines == LINES_BITS'(1);
  assign piece_over = line == (part == GELU ? PIECE_BITS'(engine_pkg::GELU_LINES - 1)
                             : part == GROUP ? PIECE_BITS'(engine_pkg::GROUP_LINES - 1)
                             : PIECE_BITS'(engine_pkg::ROW_LINES - 1));
  assign last_tile = tile == (second ? tiles2 : tiles1) - 1'b1;

  always_ff @(posedge clk) begin
    if (!started) begin
      part <= with_gelu ? GELU : GROUP;
      second <= tiles1 == '0;
      lines <= {unit_stripes, {engine_pkg::STRIPE_LINE_BITS{1'b0}}};
      line <= '0;
      tile <= '0;
      group <= '0;
      beat <= '0;
      row <= '0;
    end else if (take) begin
      lines <= lines - 1'b1;
      line <= piece_over ? '0 : line + 1'b1;
      if (piece_over)
        case (part)
          GELU: part <= GROUP;
          GROUP: begin
            part <= ROWS;
            group <= group + 1'b1;
          end
          ROWS: begin
            row <= row + 1'b1;
            if (beat == (second ? beats2 : beats1) - 1'b1) begin
              beat <= '0;
              tile <= last_tile ? '0 : tile + 1'b1;
              second <= second || last_tile;
              part <= last_tile && second ? PADDING : GROUP;
            end else beat <= beat + 1'b1;
          end
          default: ;
        endcase
    end
    if (rst) started <= 1'b0;
    else if (over) started <= 1'b0;
    else if (there) started <= 1'b1;
  end

  // ---- rows
  logic [SB-1:0] row_slot;
  always_ff @(posedge clk) begin
    if (take && part == ROWS) row_data <= engine_pkg::ROW_BITS'({line_data, row_data} >> LB);
    row_address <= engine_pkg::WEIGHT_ADDRESS_BITS'(slot * m3vit_pkg::SLOT_ROWS)
                 + engine_pkg::WEIGHT_ADDRESS_BITS'(row);
    row_slot <= slot;
    row_write <= !rst && take && part == ROWS && piece_over;
  end

  // ---- parameter groups: biases, then shifts, bytes
  localparam int GB = engine_pkg::GROUP_LINES * LB;
  logic [GB-1:0] group_bytes;
  always_ff @(posedge clk) begin
    if (take && part == GROUP) group_bytes <= GB'({line_data, group_bytes} >> LB);
    group_address <= engine_pkg::GROUP_ADDRESS_BITS'(slot * m3vit_pkg::SLOT_GROUPS)
                   + engine_pkg::GROUP_ADDRESS_BITS'(group);
    group_write <= !rst && take && part == GROUP && piece_over;
  end
  assign group_data[O*m3vit_pkg::BIAS_BITS-1:0] = group_bytes[O*m3vit_pkg::BIAS_BITS-1:0];
  for (genvar o = 0; o < O; o = o + 1) begin : g_shift
    assign group_data[O*m3vit_pkg::BIAS_BITS+o*engine_pkg::SHIFT_BITS+:engine_pkg::SHIFT_BITS] =
        group_bytes[8*(O*m3vit_pkg::BIAS_BYTES+o)+:engine_pkg::SHIFT_BITS];
  end

  // ---- GELU table: kept aside and written entry by entry while the first rows arrive
  localparam int EB = engine_pkg::GELU_LINES * LB;
  logic [EB-1:0] entries;
  always_ff @(posedge clk) begin
    if (take && part == GELU) entries <= EB'({line_data, entries} >> LB);
    else if (table_busy) entries <= {8'd0, entries[EB-1:8]};
    if (take && part == GELU && piece_over) gelu_slot <= slot;
    if (rst) begin
      table_busy <= 1'b0;
      gelu_address <= 8'd0;
    end else if (take && part == GELU && piece_over) table_busy <= 1'b1;
    else if (table_busy) begin
      gelu_address <= gelu_address + 8'd1;
      if (gelu_address == 8'd255) table_busy <= 1'b0;
    end
  end
  assign gelu_write = table_busy;
  assign gelu_data = entries[7:0];

  // ---- progress
  for (genvar s = 0; s < SLOTS; s = s + 1) begin : g_slot
    logic given;
    assign given = unit_valid && unit_ready && unit_slot == SB'(s);
    always_ff @(posedge clk) begin
      if (rst || given) rows_filled[s*RB+:RB] <= '0;
      else if (row_write && row_slot == SB'(s)) rows_filled[s*RB+:RB] <= rows_filled[s*RB+:RB] + 1'b1;
      if (rst || given) gelu_filled[s] <= 1'b0;
      else if (table_busy && gelu_address == 8'd255 && gelu_slot == SB'(s)) gelu_filled[s] <= 1'b1;
    end
  end
endmodule
