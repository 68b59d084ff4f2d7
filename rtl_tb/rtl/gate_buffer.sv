// Keeps the gate logits of two token tiles and hands them on token by token, TOPK_LANES logits per cycle. The drain
// delivers them gate tile by gate tile, so a token is complete only with its last tile. A token takes as many cycles
// as its logits have words, or one per chosen expert if that is more: later stages handle one chosen expert per cycle.
module gate_buffer (
    input  logic                               clk,
    input  logic                               rst,
    // Rows from the drain; a token tile is announced before its first row
    input  logic                               gate_reserve,
    output logic                               gate_ready,  // room for one more token tile
    input  logic                               gate_valid,
    input  logic [engine_pkg::TOKEN_BITS-1:0]  gate_token,
    input  logic [engine_pkg::TILE_BITS-1:0]   gate_tile,
    input  logic                               gate_last,
    input  logic [engine_pkg::O*32-1:0]        gate_logits,
    // Layer; its shape must be stable two cycles before `active`
    input  logic                               active,
    input  logic [engine_pkg::TOKEN_BITS-1:0]  tokens,
    input  logic [engine_pkg::EXPERT_BITS-1:0] experts,
    input  logic [engine_pkg::TOP_K_BITS-1:0]  top_k,
    output logic                               first_token,  // pulse: the layer's first token starts
    // Words of one token back to back
    output logic                               word_valid,
    output logic                               word_first,
    output logic                               word_last,
    output logic [$clog2(m3vit_pkg::MAX_EXPERTS)-1:0] word_expert,  // of lane 0
    output logic [m3vit_pkg::TOPK_LANES-1:0]   word_mask,  // lanes that are experts
    output logic [m3vit_pkg::TOPK_LANES*32-1:0] word_logits
);
  localparam int T = engine_pkg::T;
  localparam int O = engine_pkg::O;
  localparam int TB = engine_pkg::TOKEN_BITS;
  localparam int EB = engine_pkg::EXPERT_BITS;
  localparam int LANES = m3vit_pkg::TOPK_LANES;  // a power of two
  localparam int LANE_BITS = $clog2(LANES);
  localparam int INDEX_BITS = $clog2(m3vit_pkg::MAX_EXPERTS);
  localparam int WORD_BITS = EB - LANE_BITS + 1;
  localparam int SLICES = O / LANES;  // words per row; O is a multiple of LANES
  localparam int SLICE_BITS = SLICES > 1 ? $clog2(SLICES) : 1;
  // Row address: {low bits of the token, gate tile}. At most 2T tokens live, and they follow each other.
  localparam int RING_BITS = $clog2(2 * T);
  localparam int GATE_TILES = (m3vit_pkg::MAX_EXPERTS + O - 1) / O;
  localparam int GATE_TILE_BITS = GATE_TILES > 1 ? $clog2(GATE_TILES) : 1;
  localparam int ADDRESS_BITS = RING_BITS + GATE_TILE_BITS;

  // ---- derived from the layer's shape
  logic [WORD_BITS-1:0] words, last_word, last_step;
  logic [LANES-1:0] tail_mask;
  logic [LANE_BITS-1:0] tail;
  assign tail = experts[LANE_BITS-1:0];
  always_ff @(posedge clk) begin
    words <= WORD_BITS'((experts + EB'(LANES - 1)) >> LANE_BITS);
    last_word <= words - 1'b1;
    last_step <= (words > WORD_BITS'(top_k) ? words : WORD_BITS'(top_k)) - 1'b1;
    for (int j = 0; j < LANES; j = j + 1) tail_mask[j] <= tail == '0 || LANE_BITS'(j) < tail;
  end

  // ---- reading tokens
  logic busy, start, exhausted, step_last, token_first;
  logic [TB-1:0] token, current;  // next token, token being read
  logic [RING_BITS:0] complete;  // tokens whose last row has arrived, not yet started
  logic [engine_pkg::COUNT_BITS-1:0] lane;  // of the token being read, within its tile
  logic [WORD_BITS-1:0] step;
  logic [SLICE_BITS-1:0] slice;
  logic [GATE_TILE_BITS-1:0] tile;
  logic e0_valid, e0_first, e0_last;  // a word is addressed
  logic tile_over;  // last row of a token tile has been read
  logic final_token;
  assign step_last = busy && step == last_step;
  assign start = active && !exhausted && complete != '0 && (!busy || step_last);
  assign tile_over = e0_last && (final_token || lane == engine_pkg::COUNT_BITS'(T - 1));
  assign first_token = start && token_first;

  always_ff @(posedge clk) begin
    if (start) begin
      step <= '0;
      slice <= '0;
      tile <= '0;
      current <= token;
      final_token <= token == tokens - 1'b1;
    end else if (busy) begin
      step <= step + 1'b1;
      if (slice == SLICE_BITS'(SLICES - 1)) begin
        slice <= '0;
        tile <= tile + 1'b1;
      end else slice <= slice + 1'b1;
    end
    if (start) lane <= token_first || lane == engine_pkg::COUNT_BITS'(T - 1) ? '0 : lane + 1'b1;
    if (!active) begin
      token <= '0;
      token_first <= 1'b1;
      exhausted <= 1'b0;
    end else if (start) begin
      token <= token + 1'b1;
      token_first <= 1'b0;
      exhausted <= token == tokens - 1'b1;
    end
    if (rst) begin
      busy <= 1'b0;
      complete <= '0;
    end else begin
      busy <= start || (busy && !step_last);
      complete <= complete + (RING_BITS + 1)'(gate_valid && gate_last) - (RING_BITS + 1)'(start);
    end
  end

  // ---- room
  logic [1:0] room;  // token tiles
  assign gate_ready = room != 2'd0;
  always_ff @(posedge clk)
    if (rst) room <= 2'd2;
    else room <= room - 2'(gate_reserve) + 2'(tile_over);

  // ---- row memory, then one slice of the row
  logic e1_valid, e1_first, e1_last, e2_valid, e2_first, e2_last;
  logic [SLICE_BITS-1:0] e1_slice, e2_slice;
  logic [INDEX_BITS-1:0] e0_expert, e1_expert, e2_expert;
  logic [O*32-1:0] row;
  assign e0_valid = busy && step < words;
  assign e0_first = step == '0;
  assign e0_last = busy && step == last_word;
  assign e0_expert = INDEX_BITS'({step, LANE_BITS'(0)});

  ram #(
      .WIDTH(O * 32),
      .DEPTH(1 << ADDRESS_BITS)
  ) u_rows (
      .clk,
      .write        (gate_valid),
      .write_address({gate_token[RING_BITS-1:0], gate_tile[GATE_TILE_BITS-1:0]}),
      .write_data   (gate_logits),
      .read         (e0_valid && slice == '0),
      .read_address ({current[RING_BITS-1:0], tile}),
      .read_data    (row)
  );

  always_ff @(posedge clk) begin
    if (e0_valid) begin
      {e1_first, e1_last} <= {e0_first, e0_last};
      {e1_slice, e1_expert} <= {slice, e0_expert};
    end
    if (e1_valid) begin
      {e2_first, e2_last} <= {e1_first, e1_last};
      {e2_slice, e2_expert} <= {e1_slice, e1_expert};
    end
    if (e2_valid) begin
      {word_first, word_last} <= {e2_first, e2_last};
      word_expert <= e2_expert;
      word_mask <= e2_last ? tail_mask : '1;
      word_logits <= row[e2_slice*LANES*32+:LANES*32];
    end
    if (rst) {e1_valid, e2_valid, word_valid} <= '0;
    else {e1_valid, e2_valid, word_valid} <= {e0_valid, e1_valid, e2_valid};
  end

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  always_ff @(posedge clk)
    if (armed && !rst) begin
      assert (!(gate_reserve && room == 2'd0)) else $error("gate_buffer: token tile announced without room");
      assert (!(gate_valid && gate_last && 32'(complete) == 2 * T)) else $error("gate_buffer: too many rows");
      assert (!(tile_over && room == 2'd2)) else $error("gate_buffer: row that nobody announced");
      assert (!(gate_valid && 32'(gate_tile) >= GATE_TILES)) else $error("gate_buffer: gate tile out of range");
    end
`endif

  /* verilator lint_off UNUSEDSIGNAL */
  logic unused;
  assign unused = ^{gate_token, gate_tile, current};  // upper bits do not address a row
  /* verilator lint_on UNUSEDSIGNAL */
endmodule
