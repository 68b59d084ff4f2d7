// Turns the int8 rows of LINEAR layers into output lines. The drain writes O values of a token per cycle into one of
// two buffers, each of T rows of a unit's outputs; whole lines are read from the other. A buffer is a bank per port of
// port words side by side, so that a row of O bytes, some words further each time, fits with a rotation.
module linear_pack (
    input  logic                                      clk,
    input  logic                                      rst,
    // Entry table: passed over but for LINEAR layers, each held until its last line is on its way
    input  logic                                      layer_valid,
    // verilator lint_off UNUSEDSIGNAL
    input  engine_pkg::layer_t                        layer,  // most of it concerns others
    // verilator lint_on UNUSEDSIGNAL
    input  logic [     engine_pkg::ENTRY_BITS-1:0]    entry,
    output logic                                      layer_advance,
    // Buffers: whoever starts a tile reserves one
    output logic                                      linear_ready,
    input  logic                                      linear_reserve,
    // Rows from the drain
    input  logic                                      linear_write,
    input  logic [      engine_pkg::LANE_BITS-1:0]    linear_lane,
    input  logic [      engine_pkg::TILE_BITS-1:0]    linear_tile,  // within the unit
    input  logic [          engine_pkg::O*8-1:0]      linear_data,
    input  logic                                      linear_done,  // with a tile's last row
    // verilator lint_off UNUSEDSIGNAL
    input  engine_pkg::tile_t                         linear_info,
    // verilator lint_on UNUSEDSIGNAL
    // Output lines
    output logic                                      line_valid,
    input  logic                                      line_ready,
    output logic [      engine_pkg::LINE_BITS-1:0]    line_data,
    output logic [          32-$clog2(m3vit_pkg::LINE_BYTES)-1:0] line_address,  // in the arena, before interleaving
    output logic                                      line_cut,  // the next line is elsewhere, or later
    output logic                                      line_final,  // of the layer
    output logic [     engine_pkg::ENTRY_BITS-1:0]    line_entry
);
  localparam int O = engine_pkg::O;
  localparam int P = m3vit_pkg::PORTS;
  localparam int PORT_INDEX_BITS = P < 2 ? 1 : $clog2(P);
  localparam int WORD_BITS = engine_pkg::PORT_BITS;
  localparam int WORDS = O / m3vit_pkg::PORT_BYTES;  // of a row from the drain
  localparam int LINE_BYTES = m3vit_pkg::LINE_BYTES;
  localparam int LINE_BITS = engine_pkg::LINE_BITS;
  localparam int BYTE_BITS = $clog2(LINE_BYTES);
  localparam int ADDRESS_BITS = 32 - BYTE_BITS;
  localparam int UNIT_LINES = (m3vit_pkg::SLOT_GROUPS * O + LINE_BYTES - 1) / LINE_BYTES;  // of a token
  localparam int UNIT_LINE_BITS = UNIT_LINES < 2 ? 1 : $clog2(UNIT_LINES);
  localparam int BANK_BITS = 1 + engine_pkg::LANE_BITS + UNIT_LINE_BITS;
  localparam int LAYER_WORD_BITS = engine_pkg::OUTPUT_TILE_BITS + $clog2(WORDS + 1);
  localparam int LINE_INDEX_BITS = engine_pkg::OUTPUT_LINE_BITS;
  localparam int QUEUE = 16;  // lines read and not yet taken
  localparam int QUEUE_BITS = $clog2(QUEUE + 1);

  if (O % m3vit_pkg::PORT_BYTES != 0 || WORDS > P) begin : g_check
    $error("linear_pack: TILE_OUTPUTS must be whole port words, at most one line");
  end

  // A constant product of shifts and sums, since multipliers are what the array needs.
  function automatic logic [LAYER_WORD_BITS-1:0] words_of(input logic [engine_pkg::OUTPUT_TILE_BITS-1:0] tiles_before);
    words_of = '0;
    for (int i = 0; i < $clog2(WORDS + 1); i = i + 1)
      if (WORDS[i]) words_of = words_of + (LAYER_WORD_BITS'(tiles_before) << i);
  endfunction

  // ---- write: word k of the row goes to bank (first + k) modulo P
  logic write_buffer;
  logic [LAYER_WORD_BITS-1:0] first_word;
  logic [P-1:0] bank_write;
  logic [P-1:0][BANK_BITS-1:0] bank_write_address;
  logic [P*WORD_BITS-1:0] bank_write_data;
  assign first_word = words_of(engine_pkg::OUTPUT_TILE_BITS'(linear_tile));

  for (genvar b = 0; b < P; b = b + 1) begin : g_rotate
    logic [PORT_INDEX_BITS-1:0] word;  // of the row, that this bank takes
    // verilator lint_off UNUSEDSIGNAL
    logic [LAYER_WORD_BITS-1:0] place;  // of that word in the token's row; the bank is its lowest part
    // verilator lint_on UNUSEDSIGNAL
    assign word = (PORT_INDEX_BITS'(b) - first_word[PORT_INDEX_BITS-1:0]) & PORT_INDEX_BITS'(P - 1);
    assign place = first_word + LAYER_WORD_BITS'(word);
    always_ff @(posedge clk) begin
      bank_write[b] <= linear_write && int'(word) < WORDS;
      if (linear_write) begin
        bank_write_address[b] <= {write_buffer, linear_lane, place[$clog2(P)+:UNIT_LINE_BITS]};
        bank_write_data[b*WORD_BITS+:WORD_BITS] <= linear_data[(int'(word)%WORDS)*WORD_BITS+:WORD_BITS];
      end
    end
  end

  // ---- tiles written, oldest first; a buffer counts as reserved until its last line is read
  localparam int INFO_BITS = engine_pkg::OUTPUT_TILE_BITS + engine_pkg::TILE_BITS + engine_pkg::COUNT_BITS + 2;
  logic [1:0] reserved;
  logic written, tile_end, tile_valid;
  logic [INFO_BITS-1:0] info, written_info;
  logic [engine_pkg::OUTPUT_TILE_BITS-1:0] first_tile;
  logic [engine_pkg::TILE_BITS-1:0] tiles;
  logic [engine_pkg::COUNT_BITS-1:0] count;
  logic first_token, last_in_layer;

  assign linear_ready = reserved != 2'd2;
  always_ff @(posedge clk) begin
    written_info <= {
      linear_info.first_tile,
      linear_info.tiles,
      linear_info.count,
      linear_info.token[engine_pkg::TOKEN_BITS-1:0] == '0,
      linear_info.last_in_layer
    };
    if (rst) begin
      reserved <= '0;
      written <= 1'b0;
      write_buffer <= 1'b0;
    end else begin
      reserved <= reserved + 2'(linear_reserve) - 2'(tile_end);
      written <= linear_write && linear_done;  // the row is in the memory one cycle later
      write_buffer <= write_buffer ^ (linear_write && linear_done);
    end
  end

  logic tiles_room;
  fifo #(
      .WIDTH(INFO_BITS),
      .DEPTH(2)
  ) u_tiles (
      .clk,
      .rst,
      .in_valid (written),
      .in_ready (tiles_room),
      .in_data  (written_info),
      .out_valid(tile_valid),
      .out_ready(tile_end),
      .out_data (info)
  );
  assign {first_tile, tiles, count, first_token, last_in_layer} = info;

  // ---- read: lines of token after token. Tiles of a unit follow each other, so row addresses only grow.
  logic reading, read_buffer, go, linear, whole, tail_unit, last_line, last_lane, cut;
  logic [LINE_INDEX_BITS-1:0] first_line, end_line, lines_left, unit_lines;
  logic [engine_pkg::COUNT_BITS-1:0] lanes_left;
  logic [engine_pkg::LANE_BITS-1:0] lane;
  logic [UNIT_LINE_BITS-1:0] line;  // of the unit
  logic [ADDRESS_BITS-1:0] row_address, address;  // of the token's first line of this unit; of this line
  logic [QUEUE_BITS-1:0] queued;
  logic line_pop;
  logic [engine_pkg::OUTPUT_TILE_BITS-1:0] end_tile;
  // verilator lint_off UNUSEDSIGNAL
  logic [LAYER_WORD_BITS-1:0] begin_word, end_word;  // of the unit; units meet at whole lines
  // verilator lint_on UNUSEDSIGNAL

  assign linear = !layer.job_end && layer.kind == engine_pkg::KIND_LINEAR;
  assign end_tile = first_tile + engine_pkg::OUTPUT_TILE_BITS'(tiles);
  assign begin_word = words_of(first_tile);
  assign end_word = words_of(end_tile);
  assign tail_unit = end_tile == layer.output_tiles;
  assign first_line = LINE_INDEX_BITS'(begin_word >> $clog2(P));
  assign end_line = tail_unit ? layer.output_lines : LINE_INDEX_BITS'(end_word >> $clog2(P));

  typedef enum logic [1:0] {
    WAIT,
    SHAPE,
    ROW,
    READ
  } state_e;
  state_e state;
  logic [LINE_INDEX_BITS-1:0] begin_line;
  logic unit_tail;

  assign reading = state == READ;
  assign go = reading && queued != QUEUE_BITS'(QUEUE);
  assign last_line = lines_left == LINE_INDEX_BITS'(1);
  assign last_lane = lanes_left == engine_pkg::COUNT_BITS'(1);
  assign tile_end = go && last_line && last_lane;
  assign cut = last_line && (last_lane || !whole);
  assign layer_advance = layer_valid && (!linear || (tile_end && last_in_layer));

  always_ff @(posedge clk) begin
    case (state)
      SHAPE: begin
        begin_line <= first_line;
        unit_lines <= end_line - first_line;
        unit_tail <= tail_unit;
        lanes_left <= count;
        lane <= '0;
        line <= '0;
      end
      ROW: begin
        whole <= unit_lines == layer.output_lines;
        lines_left <= unit_lines;
        if (first_token) row_address <= layer.output_rows[31-:ADDRESS_BITS] + ADDRESS_BITS'(begin_line);
        address <= first_token ? layer.output_rows[31-:ADDRESS_BITS] + ADDRESS_BITS'(begin_line) : row_address;
      end
      READ:
      if (go) begin
        lines_left <= last_line ? unit_lines : lines_left - 1'b1;
        line <= last_line ? '0 : line + 1'b1;
        address <= address + 1'b1;
        if (last_line) begin
          lanes_left <= lanes_left - 1'b1;
          lane <= lane + 1'b1;
          row_address <= row_address + ADDRESS_BITS'(layer.output_lines);
          address <= row_address + ADDRESS_BITS'(layer.output_lines);
        end
      end
      default: ;
    endcase
    if (rst) begin
      state <= WAIT;
      read_buffer <= 1'b0;
    end else begin
      case (state)
        WAIT: if (tile_valid && layer_valid && linear) state <= SHAPE;
        SHAPE: state <= ROW;
        ROW: state <= READ;
        default: if (tile_end) state <= WAIT;
      endcase
      read_buffer <= read_buffer ^ tile_end;
    end
  end

  logic [P*WORD_BITS-1:0] read_data;
  for (genvar b = 0; b < P; b = b + 1) begin : g_bank
    ram #(
        .WIDTH(WORD_BITS),
        .DEPTH(1 << BANK_BITS)
    ) u_bank (
        .clk,
        .write        (bank_write[b]),
        .write_address(bank_write_address[b]),
        .write_data   (bank_write_data[b*WORD_BITS+:WORD_BITS]),
        .read         (go),
        .read_address ({read_buffer, lane, line}),
        .read_data    (read_data[b*WORD_BITS+:WORD_BITS])
    );
  end

  // ---- zero what lies past the last output, and hand over. Buffers keep old bytes; only a row's last line shows any.
  localparam int TAG_BITS = ADDRESS_BITS + 2 + engine_pkg::ENTRY_BITS;
  logic [1:0] valid, partial;
  logic [1:0][TAG_BITS-1:0] tag;
  logic [LINE_BYTES-1:0] tail;  // bytes of a row's last line that are outputs
  logic [LINE_BITS-1:0] masked;

  always_ff @(posedge clk) begin
    if (rst) valid <= '0;
    else valid <= {valid[0], go};
    partial <= {partial[0], unit_tail && last_line};
    tag <= {tag[0], address, cut, tile_end && last_in_layer, entry};
    if (state == SHAPE)
      tail <= layer.outputs[BYTE_BITS-1:0] == '0 ? '1 : ~({LINE_BYTES{1'b1}} << layer.outputs[BYTE_BITS-1:0]);
  end
  for (genvar v = 0; v < LINE_BYTES; v = v + 1) begin : g_mask
    assign masked[v*8+:8] = partial[1] && !tail[v] ? 8'h00 : read_data[v*8+:8];
  end

  logic line_room;
  fifo #(
      .WIDTH(LINE_BITS + TAG_BITS),
      .DEPTH(QUEUE)
  ) u_lines (
      .clk,
      .rst,
      .in_valid (valid[1]),
      .in_ready (line_room),
      .in_data  ({tag[1], masked}),
      .out_valid(line_valid),
      .out_ready(line_ready),
      .out_data ({line_address, line_cut, line_final, line_entry, line_data})
  );
  assign line_pop = line_valid && line_ready;
  always_ff @(posedge clk)
    if (rst) queued <= '0;
    else queued <= queued + QUEUE_BITS'(go) - QUEUE_BITS'(line_pop);

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  always_ff @(posedge clk)
    if (armed && !rst) begin
      assert (!linear_reserve || linear_ready) else $error("linear_pack: reserved without a buffer");
      assert (!linear_write || reserved != '0) else $error("linear_pack: a row for no buffer");
      assert (!written || tiles_room) else $error("linear_pack: more tiles than buffers");
      assert (!valid[1] || line_room) else $error("linear_pack: a line without room");
      assert (state != SHAPE || int'(end_line) - int'(first_line) <= UNIT_LINES)
      else $error("linear_pack: unit too wide");
    end
`endif
endmodule
