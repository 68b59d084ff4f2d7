// Top-k of a token's logits, TOPK_LANES per cycle: the lanes of a word are sorted, then the sorted list passes one
// cell per rank, each of which keeps the best it has seen. The entry of rank r is final one cycle after that of rank r
// - 1, so a token's chosen experts leave one per cycle, best first. Ties go to the lower expert. Nothing stalls;
// tokens may follow each other as soon as max(words, top_k) cycles have passed.
module topk (
    input  logic                                 clk,
    input  logic                                 rst,
    input  logic [engine_pkg::TOP_K_BITS-1:0]    top_k,  // stable while words are on their way
    input  logic                                 word_valid,
    input  logic                                 word_first,
    input  logic                                 word_last,
    input  logic [$clog2(m3vit_pkg::MAX_EXPERTS)-1:0] word_expert,  // of lane 0
    input  logic [m3vit_pkg::TOPK_LANES-1:0]     word_mask,
    input  logic [m3vit_pkg::TOPK_LANES*32-1:0]  word_logits,
    output logic                                 chosen_valid,
    output logic                                 chosen_first,  // rank 0
    output logic                                 chosen_last,  // rank top_k - 1
    output logic [$clog2(m3vit_pkg::MAX_EXPERTS)-1:0] chosen_expert,
    output logic [31:0]                          chosen_logit
);
  localparam int LANES = m3vit_pkg::TOPK_LANES;
  localparam int RANKS = m3vit_pkg::MAX_TOP_K;
  localparam int INDEX_BITS = $clog2(m3vit_pkg::MAX_EXPERTS);
  localparam int ENTRY = 33 + INDEX_BITS;
  localparam int LIST = LANES < RANKS ? LANES : RANKS;
  localparam int PLACE_BITS = $clog2(LANES + 1);

  // ---- sort the lanes: compare all pairs, count who goes before a lane, place it
  logic a_valid, a_first, a_last, b_valid, b_first, b_last;
  logic [LANES*ENTRY-1:0] entries, a_entries, b_entries;
  logic [LANES*LANES-1:0] a_wins, a_before;  // bit j*LANES + i: lane i goes before lane j; compared for i < j
  logic [LANES*PLACE_BITS-1:0] b_places;

  for (genvar i = 0; i < LANES; i = i + 1) begin : g_entry
    // Lanes that are no experts are all zero, below every valid entry.
    assign entries[i*ENTRY+:ENTRY] = word_mask[i]
        ? {1'b1, ~word_logits[i*32+31], word_logits[i*32+:31], ~(word_expert | INDEX_BITS'(i))} : '0;
  end

  for (genvar i = 0; i < LANES; i = i + 1) begin : g_pair
    for (genvar j = 0; j < LANES; j = j + 1) begin : g_with
      if (i < j) begin : g_compare
        always_ff @(posedge clk)
          if (word_valid)
            a_wins[j*LANES+i] <= entries[i*ENTRY+INDEX_BITS+:33] >= entries[j*ENTRY+INDEX_BITS+:33];
        assign a_before[j*LANES+i] = a_wins[j*LANES+i];
      end else begin : g_mirror
        assign a_wins[j*LANES+i] = 1'b0;
        assign a_before[j*LANES+i] = i != j && !a_wins[i*LANES+j];
      end
    end
  end

  function automatic logic [PLACE_BITS-1:0] count(input logic [LANES-1:0] bits);
    count = '0;
    for (int i = 0; i < LANES; i = i + 1) count = count + PLACE_BITS'(bits[i]);
  endfunction

  for (genvar j = 0; j < LANES; j = j + 1) begin : g_place
    always_ff @(posedge clk)
      if (a_valid) b_places[j*PLACE_BITS+:PLACE_BITS] <= count(a_before[j*LANES+:LANES]);
  end

  always_ff @(posedge clk) begin
    if (word_valid) begin
      a_entries <= entries;
      {a_first, a_last} <= {word_first, word_last};
    end
    if (a_valid) begin
      b_entries <= a_entries;
      {b_first, b_last} <= {a_first, a_last};
    end
    {a_valid, b_valid} <= rst ? '0 : {word_valid, a_valid};
  end

  // ---- one cell per rank
  logic [RANKS:0] valids, firsts, lasts;
  /* verilator lint_off UNUSEDSIGNAL */
  logic [(RANKS+1)*LIST*ENTRY-1:0] lists;  // those of the last ranks are shorter
  /* verilator lint_on UNUSEDSIGNAL */
  logic [RANKS-1:0] dones;
  logic [RANKS*ENTRY-1:0] bests;

  function automatic logic [ENTRY-1:0] placed(input logic [LANES*ENTRY-1:0] from,
                                              input logic [LANES*PLACE_BITS-1:0] places,
                                              input logic [PLACE_BITS-1:0] place);
    placed = '0;
    for (int j = 0; j < LANES; j = j + 1)
      placed = placed | (from[j*ENTRY+:ENTRY] & {ENTRY{places[j*PLACE_BITS+:PLACE_BITS] == place}});
  endfunction

  for (genvar p = 0; p < LIST; p = p + 1) begin : g_sorted
    always_ff @(posedge clk)
      if (b_valid) lists[p*ENTRY+:ENTRY] <= placed(b_entries, b_places, PLACE_BITS'(p));
  end
  always_ff @(posedge clk) begin
    if (b_valid) {firsts[0], lasts[0]} <= {b_first, b_last};
    valids[0] <= !rst && b_valid;
  end

  for (genvar r = 0; r < RANKS; r = r + 1) begin : g_rank
    localparam int IN = RANKS - r < LIST ? RANKS - r : LIST;
    localparam int OUT = RANKS - r - 1 < 1 ? 1 : RANKS - r - 1 < LIST ? RANKS - r - 1 : LIST;
    logic passes;
    // Ranks beyond top_k see nothing.
    assign valids[r+1] = passes && engine_pkg::TOP_K_BITS'(r + 1) < top_k;
    topk_cell #(
        .INDEX_BITS(INDEX_BITS),
        .IN(IN),
        .OUT(OUT)
    ) u_cell (
        .clk,
        .rst,
        .in_valid (valids[r]),
        .in_first (firsts[r]),
        .in_last  (lasts[r]),
        .in_list  (lists[r*LIST*ENTRY+:IN*ENTRY]),
        .out_valid(passes),
        .out_first(firsts[r+1]),
        .out_last (lasts[r+1]),
        .out_list (lists[(r+1)*LIST*ENTRY+:OUT*ENTRY]),
        .done     (dones[r]),
        .held     (bests[r*ENTRY+:ENTRY])
    );
    if (OUT < LIST) begin : g_short
      assign lists[(r+1)*LIST*ENTRY+OUT*ENTRY+:(LIST-OUT)*ENTRY] = '0;
    end
  end

  // ---- at most one cell is done in a cycle
  function automatic logic [ENTRY-1:0] pick(input logic [RANKS*ENTRY-1:0] from, input logic [RANKS-1:0] which);
    pick = '0;
    for (int r = 0; r < RANKS; r = r + 1) pick = pick | (from[r*ENTRY+:ENTRY] & {ENTRY{which[r]}});
  endfunction

  logic chosen_there;  // it is an expert
  logic [INDEX_BITS-1:0] inverted;
  logic negated;
  assign chosen_expert = ~inverted;
  assign chosen_logit[31] = !negated;
  always_ff @(posedge clk) begin
    chosen_valid <= !rst && dones != '0;
    if (dones != '0) begin
      {chosen_there, negated, chosen_logit[30:0], inverted} <= pick(bests, dones);
      chosen_first <= dones[0];
      chosen_last <= ({dones, 1'b0} >> top_k) != '0;  // rank top_k - 1
    end
  end

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  always_ff @(posedge clk)
    if (armed && !rst) begin
      assert ((dones & (dones - 1'b1)) == '0) else $error("topk: tokens follow each other too fast");
      assert (!(chosen_valid && !chosen_there)) else $error("topk: fewer experts than ranks");
    end
`endif

  /* verilator lint_off UNUSEDSIGNAL */
  logic unused;  // what is left after the last rank
  assign unused = ^{valids[RANKS], firsts[RANKS], lasts[RANKS], chosen_there};
  /* verilator lint_on UNUSEDSIGNAL */
endmodule
