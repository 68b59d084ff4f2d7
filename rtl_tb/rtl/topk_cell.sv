// One rank of the top-k sorter: holds the best entry it has seen of a token, and passes on what is left of each sorted
// list of newcomers after that entry was taken out. Entry = {valid, logit in offset binary, ~expert}: comparing whole
// entries prefers the lower expert of equal logits. A list has its best first.
module topk_cell #(
    parameter int INDEX_BITS = 8,
    parameter int IN = 8,  // length of incoming lists
    parameter int OUT = 7  // length of outgoing lists, at most IN
) (
    input  logic                           clk,
    input  logic                           rst,
    input  logic                           in_valid,
    input  logic                           in_first,  // of a token
    input  logic                           in_last,
    input  logic [IN*(33+INDEX_BITS)-1:0]  in_list,
    output logic                           out_valid,
    output logic                           out_first,
    output logic                           out_last,
    output logic [OUT*(33+INDEX_BITS)-1:0] out_list,
    output logic                           done,  // pulse: `held` is the token's entry of this rank
    output logic [32+INDEX_BITS:0]         held
);
  localparam int ENTRY = 33 + INDEX_BITS;

  logic [ENTRY-1:0] current;
  logic [IN-1:0] stays;  // current goes before newcomer j
  assign current = {held[ENTRY-1] && !in_first, held[ENTRY-2:0]};
  for (genvar j = 0; j < IN; j = j + 1) begin : g_compare
    assign stays[j] = current >= in_list[j*ENTRY+:ENTRY];
  end

  // `current` merged into the list: its first entry is kept, the others go on.
  for (genvar j = 0; j < OUT; j = j + 1) begin : g_merge
    if (j + 1 < IN) begin : g_inner
      always_ff @(posedge clk)
        if (in_valid)
          out_list[j*ENTRY+:ENTRY] <= stays[j] ? in_list[j*ENTRY+:ENTRY]
              : stays[j+1] ? current : in_list[(j+1)*ENTRY+:ENTRY];
    end else begin : g_end
      always_ff @(posedge clk) if (in_valid) out_list[j*ENTRY+:ENTRY] <= stays[j] ? in_list[j*ENTRY+:ENTRY] : current;
    end
  end

  always_ff @(posedge clk) begin
    if (in_valid) begin
      held <= stays[0] ? current : in_list[0+:ENTRY];
      out_first <= in_first;
      out_last <= in_last;
    end
    out_valid <= !rst && in_valid;
    done <= !rst && in_valid && in_last;
  end
endmodule
