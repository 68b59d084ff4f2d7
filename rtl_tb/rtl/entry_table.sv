// Commands in flight, oldest first. fetch pushes; every unit walks the table with a view of its own; the oldest entry
// retires when all units are past it, its output is written and acknowledged (layers) or its CRC is known (JOB_END).
// A bus error belongs to an entry and is reported when that entry is the oldest, so that what is before it is complete.
module entry_table (
    input  logic                                        clk,
    input  logic                                        rst,
    input  logic                                        clear,  // start of a program: forget errors
    input  logic                                        push_valid,
    output logic                                        push_ready,
    input  engine_pkg::layer_t                          push_layer,
    output logic                                        empty,
    // Views
    output logic [engine_pkg::VIEWS-1:0]                layer_valid,
    output logic [engine_pkg::VIEWS*engine_pkg::LAYER_BITS-1:0] layer,
    output logic [engine_pkg::VIEWS*engine_pkg::ENTRY_BITS-1:0] entry,
    input  logic [engine_pkg::VIEWS-1:0]                layer_advance,
    // What retirement waits for
    input  logic [engine_pkg::ENTRIES-1:0]              entry_written,
    input  logic                                        job_crc_valid,
    input  logic [engine_pkg::ENTRY_BITS-1:0]           job_crc_entry,
    output logic                                        retire,
    output engine_pkg::layer_t                          retire_layer,  // the oldest entry
    output logic [engine_pkg::ENTRY_BITS-1:0]           oldest,
    // Bus errors
    input  logic                                        read_error,
    input  logic [engine_pkg::ENTRY_BITS-1:0]           read_error_entry,
    input  logic [7:0]                                  read_error_port,
    input  logic                                        write_error,
    input  logic [engine_pkg::ENTRY_BITS-1:0]           write_error_entry,
    input  logic [7:0]                                  write_error_port,
    output logic                                        failed,  // the oldest entry has failed, and stays
    output logic                                        failed_write,
    output logic [7:0]                                  failed_port
);
  localparam int EB = engine_pkg::ENTRY_BITS;
  localparam int LB = engine_pkg::LAYER_BITS;
  localparam int ENTRIES = engine_pkg::ENTRIES;

  logic [EB:0] head, tail;
  logic push;
  assign push_ready = (head - tail) != (EB + 1)'(ENTRIES);
  assign push = push_valid && push_ready;
  assign empty = head == tail;

  always_ff @(posedge clk) begin
    if (rst) head <= '0;
    else if (push) head <= head + 1'b1;
  end

  // ---- units
  logic [engine_pkg::VIEWS-1:0] past;
  for (genvar u = 0; u < engine_pkg::VIEWS; u = u + 1) begin : g_unit
    logic [EB:0] pointer;
    entry_view u_view (
        .clk,
        .rst,
        .push,
        .push_layer,
        .head,
        .pointer,
        .layer_valid(layer_valid[u]),
        .layer      (layer[u*LB+:LB]),
        .entry      (entry[u*EB+:EB]),
        .advance    (layer_advance[u])
    );
    assign past[u] = pointer != tail;
  end

  // ---- retirement. Registered twice, so that an error that comes with the last response is seen before.
  logic oldest_valid, all_past, finished;
  logic [ENTRIES-1:0] written_1, written_2, crc_known;
  entry_view u_oldest (
      .clk,
      .rst,
      .push,
      .push_layer,
      .head,
      .pointer    (tail),
      .layer_valid(oldest_valid),
      .layer      (retire_layer),
      .entry      (oldest),
      .advance    (retire)
  );
  assign finished = retire_layer.job_end ? crc_known[oldest] : written_2[oldest];
  assign retire = oldest_valid && all_past && finished && !failed;

  always_ff @(posedge clk) begin
    all_past <= &past && !retire;
    written_1 <= entry_written;
    written_2 <= written_1 & entry_written;
    if (rst) begin
      crc_known <= '0;
    end else begin
      if (retire) crc_known[oldest] <= 1'b0;
      if (job_crc_valid) crc_known[job_crc_entry] <= 1'b1;
    end
  end

  // ---- errors: the first of an entry counts
  logic [ENTRIES-1:0] error, error_write;
  logic [ENTRIES*8-1:0] error_port;
  for (genvar e = 0; e < ENTRIES; e = e + 1) begin : g_error
    logic hit_read, hit_write;
    assign hit_read = read_error && read_error_entry == EB'(e);
    assign hit_write = write_error && write_error_entry == EB'(e);
    always_ff @(posedge clk) begin
      if (rst || clear || (push && head[EB-1:0] == EB'(e))) begin
        error[e] <= 1'b0;
      end else if ((hit_read || hit_write) && !error[e]) begin
        error[e] <= 1'b1;
        error_write[e] <= !hit_read;
        error_port[8*e+:8] <= hit_read ? read_error_port : write_error_port;
      end
    end
  end
  assign failed = oldest_valid && error[oldest];
  assign failed_write = error_write[oldest];
  assign failed_port = error_port[8*oldest+:8];

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) begin
    if (rst) armed <= 1'b1;
    if (armed && !rst && job_crc_valid && crc_known[job_crc_entry]) $error("entry_table: CRC of an entry twice");
  end
`endif
endmodule
