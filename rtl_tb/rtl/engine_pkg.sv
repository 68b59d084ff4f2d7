// Widths derived from the generated parameters, and the records that the units of the engine hand to each other.
/* verilator lint_off UNUSEDPARAM */
package engine_pkg;

  // Short names of the array's shape: tokens x outputs x inputs per beat.
  localparam int T = m3vit_pkg::TILE_TOKENS;
  localparam int O = m3vit_pkg::TILE_OUTPUTS;
  localparam int I = m3vit_pkg::TILE_INPUTS;

  // Memory side: a line is one beat of every port, a stripe one burst of every port.
  localparam int LINE_BITS = 8 * m3vit_pkg::LINE_BYTES;
  localparam int PORT_BITS = 8 * m3vit_pkg::PORT_BYTES;
  localparam int STRIPE_LINES = m3vit_pkg::BURST_BEATS;
  localparam int STRIPE_LINE_BITS = $clog2(STRIPE_LINES);
  localparam int STRIPE_BYTE_BITS = $clog2(m3vit_pkg::STRIPE_BYTES);
  localparam int BURST_BYTE_BITS = $clog2(m3vit_pkg::BURST_BYTES);
  localparam int PORT_BYTE_BITS = $clog2(m3vit_pkg::PORT_BYTES);
  localparam int STRIPE_COUNT_BITS = 33 - STRIPE_BYTE_BITS;

  // Weight operand: a row feeds one beat.
  localparam int ROW_BITS = 8 * m3vit_pkg::ROW_BYTES;
  localparam int ROW_LINES = m3vit_pkg::ROW_BYTES / m3vit_pkg::LINE_BYTES;
  localparam int GROUP_LINES = m3vit_pkg::GROUP_BYTES / m3vit_pkg::LINE_BYTES;
  localparam int GELU_LINES = m3vit_pkg::GELU_BYTES / m3vit_pkg::LINE_BYTES;
  localparam int SLOT_BITS = $clog2(m3vit_pkg::WEIGHT_SLOTS);
  localparam int SLOT_ROW_BITS = $clog2(m3vit_pkg::SLOT_ROWS + 1);
  localparam int WEIGHT_ROWS = m3vit_pkg::WEIGHT_SLOTS * m3vit_pkg::SLOT_ROWS;
  localparam int WEIGHT_ADDRESS_BITS = $clog2(WEIGHT_ROWS);
  localparam int SHIFT_BITS = 6;  // SHIFT_MIN .. SHIFT_MAX in two's complement
  localparam int GROUP_BITS = O * (m3vit_pkg::BIAS_BITS + SHIFT_BITS);  // {shifts, biases}, lane 0 lowest
  localparam int GROUPS = m3vit_pkg::WEIGHT_SLOTS * m3vit_pkg::SLOT_GROUPS;
  localparam int GROUP_ADDRESS_BITS = $clog2(GROUPS);

  // Token operand.
  localparam int OPERAND_BITS = T * I * 8;  // byte t*I + i: input i of token t
  localparam int LINE_BEATS = m3vit_pkg::LINE_BYTES / I;  // beats that one line of a token feeds
  localparam int LINE_BEAT_BITS = $clog2(LINE_BEATS);
  localparam int MAX_INPUT_LINES = (m3vit_pkg::MAX_INPUTS + m3vit_pkg::LINE_BYTES - 1) / m3vit_pkg::LINE_BYTES;
  localparam int INPUT_LINE_BITS = $clog2(MAX_INPUT_LINES + 1);
  localparam int OPERAND_GROUPS = 1 << $clog2(2 * MAX_INPUT_LINES + 1);  // lines of T tokens side by side
  localparam int OPERAND_GROUP_BITS = $clog2(OPERAND_GROUPS);
  localparam int STORE_LINES = m3vit_pkg::MAX_TOKENS * ((m3vit_pkg::MAX_WIDTH + m3vit_pkg::LINE_BYTES - 1)
                                                       / m3vit_pkg::LINE_BYTES);  // ring of input lines
  localparam int STORE_LINE_BITS = $clog2(STORE_LINES);
  localparam int STORE_COUNT_BITS = $clog2(STORE_LINES + 1);
  localparam int BLOCK_BEATS = O / I;  // beats that one hidden block (O columns) feeds
  localparam int HIDDEN_BLOCKS = (m3vit_pkg::MAX_HIDDEN + O - 1) / O;
  localparam int HIDDEN_BLOCK_BITS = $clog2(HIDDEN_BLOCKS + 1);

  // Counts.
  localparam int LANE_BITS = $clog2(T);
  localparam int COUNT_BITS = $clog2(T + 1);
  localparam int TOKEN_BITS = $clog2(m3vit_pkg::MAX_TOKENS + 1);
  localparam int EXPERT_BITS = $clog2(m3vit_pkg::MAX_EXPERTS + 1);
  localparam int TOP_K_BITS = $clog2(m3vit_pkg::MAX_TOP_K + 1);
  localparam int MAX_BEATS = (m3vit_pkg::MAX_INPUTS > m3vit_pkg::MAX_HIDDEN ? m3vit_pkg::MAX_INPUTS
                                                                           : m3vit_pkg::MAX_HIDDEN) / I;
  localparam int BEAT_BITS = $clog2(MAX_BEATS + 1);
  localparam int TILE_BITS = $clog2(m3vit_pkg::SLOT_GROUPS + 1);
  localparam int OUTPUT_TILE_BITS = 16 - $clog2(O) + 1;  // output tiles of the widest row a command can name
  localparam int OUTPUT_LINE_BITS = 12;  // lines of the widest row: 65535 values of 1 byte
  localparam int WEIGHT17 = 17;  // combine weight, 65536 = 1.0

  // Accumulators.
  localparam int PRODUCT_BITS = $clog2(MAX_BEATS * I * 128 * 127 + 1) + 1;  // sum of products, no bias
  localparam int RESULT_BITS = T * O * PRODUCT_BITS;  // lane t*O + o
  localparam int WIDE_BITS = m3vit_pkg::COMBINE_BITS;
  localparam int WIDE_ROW_BITS = O * WIDE_BITS;
  localparam int WIDE_ROWS = m3vit_pkg::MAX_TOKENS * ((m3vit_pkg::MAX_WIDTH + O - 1) / O);  // ring of rows
  localparam int WIDE_ADDRESS_BITS = $clog2(WIDE_ROWS);
  localparam int WIDE_COUNT_BITS = $clog2(WIDE_ROWS + 1);

  // Residual lines waiting for the finish unit: what the bursts in flight bring, a power of two.
  localparam int RESIDUAL_LINES = 1 << $clog2(m3vit_pkg::OUTSTANDING * m3vit_pkg::BURST_BEATS);

  // Queues: one node per token and rank, {token, rank}.
  localparam int RANK_BITS = $clog2(m3vit_pkg::MAX_TOP_K);
  localparam int NODE_BITS = TOKEN_BITS + RANK_BITS;

  // Commands in flight, oldest first, live in a table that every unit walks with a pointer of its own.
  localparam int ENTRIES = 8;
  localparam int ENTRY_BITS = $clog2(ENTRIES);
  localparam int JOB_TAG_BITS = ENTRY_BITS;

  // Views of the table, one per unit that walks it.
  localparam int VIEW_LOAD = 0;
  localparam int VIEW_INPUT = 1;
  localparam int VIEW_RESIDUAL = 2;
  localparam int VIEW_DISPATCH = 3;
  localparam int VIEW_ROUTE = 4;
  localparam int VIEW_FINISH = 5;
  localparam int VIEW_PACK = 6;
  localparam int VIEWS = 7;

  // Error codes of the record, as the units hand them on.
  localparam int ERROR_BITS = 3;

  typedef enum logic [1:0] {
    KIND_LINEAR = 2'd0,
    KIND_ACCUMULATE = 2'd1,
    KIND_MLP = 2'd2,
    KIND_MOE = 2'd3
  } kind_e;

  // An entry of the table: a JOB_END, or a checked layer command with everything derived from its shape.
  typedef struct packed {
    logic job_end;  // nothing but `job` and `index` is valid
    kind_e kind;
    logic narrow;
    logic no_prefetch;
    logic [31:0] index;  // of the command in the program
    logic [15:0] job;  // as the command names it
    logic [JOB_TAG_BITS-1:0] job_tag;  // JOB_ENDs before this entry, modulo
    logic [TOKEN_BITS-1:0] tokens;
    logic [BEAT_BITS-1:0] input_beats;  // inputs / I
    logic [INPUT_LINE_BITS-1:0] input_lines;  // lines per input row
    logic [BEAT_BITS-1:0] hidden_beats;  // hidden / I
    logic [TILE_BITS-1:0] hidden_tiles;  // 0 without first layer
    logic [TILE_BITS-1:0] unit_tiles;  // output tiles of a unit
    logic [TILE_BITS-1:0] last_tiles;  // output tiles of the last unit (unit_tiles where hidden)
    logic [OUTPUT_TILE_BITS-1:0] output_tiles;  // output tiles of the layer
    logic [15:0] outputs;
    logic [7:0] units;  // per expert
    logic [EXPERT_BITS-1:0] experts;  // 1 but for MOE
    logic [TOP_K_BITS-1:0] top_k;  // 1 but for MOE
    m3vit_pkg::schedule_e schedule;
    logic signed [7:0] gate_shift;
    logic [TILE_BITS-1:0] gate_tiles;  // 0 but for MOE
    logic [STRIPE_COUNT_BITS-1:0] unit_stripes;  // memory of one unit
    logic [STRIPE_COUNT_BITS-1:0] gate_stripes;  // memory of the gate table
    logic [STRIPE_COUNT_BITS-1:0] input_stripes;
    logic [STRIPE_COUNT_BITS-1:0] residual_stripes;  // 0 for LINEAR
    logic [STRIPE_COUNT_BITS-1:0] output_stripes;
    logic [OUTPUT_LINE_BITS-1:0] output_lines;  // lines per output row
    logic [WIDE_COUNT_BITS-1:0] wide_rows;  // tokens * output_tiles; 0 for LINEAR
    logic [31:0] weights;  // arena offsets
    logic [31:0] gate;
    logic [31:0] input_rows;
    logic [31:0] residual;
    logic [31:0] output_rows;
    logic [31:0] pairs;  // tokens * top_k
    logic [47:0] macs;  // gate included
  } layer_t;
  localparam int LAYER_BITS = $bits(layer_t);

  typedef enum logic [1:0] {
    SINK_GATE = 2'd0,  // logits to the route unit
    SINK_LINEAR = 2'd1,  // int8 rows to the store unit
    SINK_COMBINE = 2'd2  // int16 contributions to the wide accumulators
  } sink_e;

  // Up to T tokens through one unit: first layer (if any) into the hidden tile, then `tiles` output tiles.
  typedef struct packed {
    sink_e sink;
    logic narrow;
    logic [ENTRY_BITS-1:0] entry;  // of the command
    logic [JOB_TAG_BITS-1:0] job_tag;
    logic [SLOT_BITS-1:0] slot;  // of the weights
    logic [BEAT_BITS-1:0] input_beats;
    logic [BEAT_BITS-1:0] hidden_beats;
    logic [TILE_BITS-1:0] hidden_tiles;  // 0: the output tiles read the input
    logic [TILE_BITS-1:0] tiles;
    logic [OUTPUT_TILE_BITS-1:0] first_tile;  // of the unit, within the layer's output tiles
    logic [COUNT_BITS-1:0] count;  // tokens, 1 .. T
    logic [T*TOKEN_BITS-1:0] token;  // lane 0 lowest
    logic [T*WEIGHT17-1:0] weight;
    logic [T-1:0] fresh;  // lane's rows overwrite the accumulator instead of adding
    logic [T*WIDE_ADDRESS_BITS-1:0] wide_row;  // accumulator row of output tile `first_tile`
    logic [WIDE_COUNT_BITS-1:0] completes;  // accumulator rows that are complete after this tile
    logic first_in_layer;
    logic last_in_unit;  // the slot is free afterwards
    logic last_in_layer;
  } tile_t;
  localparam int TILE_T_BITS = $bits(tile_t);

  // The expert that comes next.
  typedef struct packed {
    logic last;  // no further expert in this layer
    logic resident;  // all its units are in slots (schedule RESIDENT_FIRST)
    logic [EXPERT_BITS-1:0] expert;
    logic [TOKEN_BITS-1:0] count;  // length of its queue
    logic [NODE_BITS-1:0] head;  // first node of its queue
  } order_t;

endpackage : engine_pkg
/* verilator lint_on UNUSEDPARAM */
