// Token queues: a linked list of {token, rank} nodes per expert, so memory does not depend on the number of experts.
// One entry per cycle is appended; its weight follows later, straight to the node. A walk reads one queue in order, an
// entry per three cycles, and waits where a weight has not been written yet.
module queues (
    input  logic                               clk,
    input  logic                               rst,
    // Appending
    input  logic                               append_valid,
    input  logic [$clog2(m3vit_pkg::MAX_EXPERTS)-1:0] append_expert,
    input  logic [engine_pkg::NODE_BITS-1:0]   append_node,
    input  logic                               weight_valid,
    input  logic [engine_pkg::NODE_BITS-1:0]   weight_node,
    input  logic [15:0]                        weight,
    input  logic [engine_pkg::TOKEN_BITS-1:0]  weights_tokens,  // tokens whose weights are all there
    // What is there, and taking experts out of it; data of `scan_expert` in the same cycle
    input  logic [$clog2(m3vit_pkg::MAX_EXPERTS)-1:0] scan_expert,
    output logic                               scan_used,
    output logic [engine_pkg::TOKEN_BITS-1:0]  scan_count,
    output logic [engine_pkg::NODE_BITS-1:0]   scan_head,
    input  logic                               take_valid,
    input  logic [$clog2(m3vit_pkg::MAX_EXPERTS)-1:0] take_expert,
    output logic [engine_pkg::EXPERT_BITS-1:0] used,  // experts with a queue that nobody has taken
    // Walk
    input  logic                               walk_start,
    input  logic [engine_pkg::NODE_BITS-1:0]   walk_head,
    input  logic [engine_pkg::TOKEN_BITS-1:0]  walk_count,
    output logic                               walk_valid,
    input  logic                               walk_ready,
    output logic [engine_pkg::TOKEN_BITS-1:0]  walk_token,
    output logic [engine_pkg::WEIGHT17-1:0]    walk_weight
);
  localparam int EXPERTS = m3vit_pkg::MAX_EXPERTS;
  localparam int INDEX_BITS = $clog2(EXPERTS);
  localparam int NB = engine_pkg::NODE_BITS;
  localparam int TB = engine_pkg::TOKEN_BITS;
  localparam int RB = engine_pkg::RANK_BITS;

  // ---- append: look up whether the expert is known, then read-modify-write its tail and count
  logic [EXPERTS-1:0] occupied;
  logic a_valid, a_known;
  logic [INDEX_BITS-1:0] a_expert;
  logic [NB-1:0] a_node, tail;
  logic [TB-1:0] count;
  assign scan_used = occupied[scan_expert];
  assign scan_count = count;

  ram_distributed #(
      .WIDTH(TB + NB),
      .DEPTH(EXPERTS)
  ) u_tails (
      .clk,
      .write        (a_valid),
      .write_address(a_expert),
      .write_data   ({a_known ? count + 1'b1 : TB'(1), a_node}),
      .read_address (a_valid ? a_expert : scan_expert),
      .read_data    ({count, tail})
  );
  ram_distributed #(
      .WIDTH(NB),
      .DEPTH(EXPERTS)
  ) u_heads (
      .clk,
      .write        (a_valid && !a_known),
      .write_address(a_expert),
      .write_data   (a_node),
      .read_address (scan_expert),
      .read_data    (scan_head)
  );

  always_ff @(posedge clk) begin
    if (a_valid) occupied[a_expert] <= 1'b1;
    if (take_valid) occupied[take_expert] <= 1'b0;
    if (rst) occupied <= '0;
  end

  logic link;
  logic [NB-1:0] link_from, link_to;
  always_ff @(posedge clk) begin
    if (append_valid) begin
      a_expert <= append_expert;
      a_node <= append_node;
      a_known <= occupied[append_expert] || (a_valid && a_expert == append_expert);
    end
    if (a_valid && a_known) {link_from, link_to} <= {tail, a_node};
    if (rst) begin
      {a_valid, link} <= '0;
      used <= '0;
    end else begin
      {a_valid, link} <= {append_valid, a_valid && a_known};
      used <= used + engine_pkg::EXPERT_BITS'(a_valid && !a_known) - engine_pkg::EXPERT_BITS'(take_valid);
    end
  end

  // ---- nodes
  logic [NB-1:0] node, next;
  logic [15:0] node_weight;
  logic read;
  ram #(
      .WIDTH(NB),
      .DEPTH(1 << NB)
  ) u_next (
      .clk,
      .write        (link),
      .write_address(link_from),
      .write_data   (link_to),
      .read,
      .read_address (node),
      .read_data    (next)
  );
  ram #(
      .WIDTH(16),
      .DEPTH(1 << NB)
  ) u_weights (
      .clk,
      .write        (weight_valid),
      .write_address(weight_node),
      .write_data   (weight),
      .read,
      .read_address (node),
      .read_data    (node_weight)
  );

  // ---- walk
  logic walking, waiting, fetched;  // entries left; one being read, its data is there
  logic [TB-1:0] left, settled;
  logic take;
  assign read = walking && !waiting && node[NB-1:RB] < settled;
  assign take = fetched && (!walk_valid || walk_ready);
  always_ff @(posedge clk) begin
    if (walk_start) node <= walk_head;
    else if (take) node <= next;
    if (take) begin
      walk_token <= node[NB-1:RB];
      walk_weight <= engine_pkg::WEIGHT17'(node_weight);
    end
    settled <= weights_tokens;
    if (rst) begin
      {walking, waiting, fetched, walk_valid} <= '0;
      left <= '0;
    end else begin
      if (walk_start) left <= walk_count;
      else if (take) left <= left - 1'b1;
      walking <= (walk_start && walk_count != '0) || (walking && !(take && left == TB'(1)));
      waiting <= read || (waiting && !take);
      fetched <= waiting && !take;
      walk_valid <= take || (walk_valid && !walk_ready);
    end
  end

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  always_ff @(posedge clk)
    if (armed && !rst) begin
      assert (!(walk_start && (walking || (walk_valid && !walk_ready))))
        else $error("queues: walk started during another");
      assert (!(append_valid && (walking || walk_valid))) else $error("queues: append during a walk");
      assert (!(take_valid && (a_valid || append_valid))) else $error("queues: expert taken while appending");
    end
`endif
endmodule
