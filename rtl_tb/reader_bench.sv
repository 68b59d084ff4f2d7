// The reading side for test_reader.py: the reader and the sources of input and residual rows behind two rings. Requests of
// weights and commands, the rings' readers and the memory ports are the bench's.
module reader_bench #(
    parameter int INPUT_RING = 96  // lines; the engine's is larger, and a full one is what matters here
) (
    input  logic                                              clk,
    input  logic                                              rst,
    input  logic                                              halt,
    input  logic [               m3vit_pkg::PORTS*64-1:0]     arena,
    input  logic [             engine_pkg::ENTRY_BITS-1:0]    oldest,
    // Weights
    input  logic                                              weights_valid,
    input  logic [                                    31:0]   weights_offset,
    input  logic [             engine_pkg::ENTRY_BITS-1:0]    weights_entry,
    input  logic [           engine_pkg::JOB_TAG_BITS-1:0]    weights_job_tag,
    // Layers of the two row sources: input rows, residual rows
    input  logic [                                     1:0]   layer_valid,
    input  logic [                                     1:0]   layer_skip,
    input  logic [           2*engine_pkg::TOKEN_BITS-1:0]    layer_tokens,
    input  logic [        engine_pkg::INPUT_LINE_BITS-1:0]    input_row_lines,
    input  logic [       engine_pkg::OUTPUT_LINE_BITS-1:0]    residual_row_lines,
    input  logic [                                  2*32-1:0] layer_rows,
    input  logic [           2*engine_pkg::ENTRY_BITS-1:0]    layer_entry,
    input  logic [         2*engine_pkg::JOB_TAG_BITS-1:0]    layer_job_tag,
    output logic [                                     1:0]   layer_advance,
    input  logic [                                     6:0]   input_freed,
    input  logic                                              residual_freed,
    output logic [                                     1:0]   line_keep,
    // Requests as the reader sees them
    output logic [                                     2:0]   request_valid,
    output logic [                                     2:0]   request_ready,
    output logic [                                3*32-1:0]   request_offset,
    output logic [           3*engine_pkg::ENTRY_BITS-1:0]    request_entry,
    output logic [         3*engine_pkg::JOB_TAG_BITS-1:0]    request_job_tag,
    // Commands
    input  logic                                              command_request_valid,
    output logic                                              command_request_ready,
    input  logic [                                    31:0]   command_request_offset,
    output logic                                              command_data_valid,
    output logic [             m3vit_pkg::COMMAND_BITS-1:0]   command_data,
    output logic                                              command_data_error,
    // Lines and events
    output logic [                                     2:0]   line_valid,
    input  logic                                              line_ready,
    output logic [              engine_pkg::LINE_BITS-1:0]    line_data,
    output logic                                              line_last,
    output logic                                              error_valid,
    output logic [             engine_pkg::ENTRY_BITS-1:0]    error_entry,
    output logic [                                     7:0]   error_port,
    output logic                                              stripe_requested,
    output logic                                              stripe_is_weight,
    output logic                                              stripe_done,
    output logic [           engine_pkg::JOB_TAG_BITS-1:0]    stripe_job_tag,
    output logic                                              reading,
    output logic [                engine_pkg::ENTRIES-1:0]    entry_reading,
    output logic                                              idle,
    // AXI4
    output logic [               m3vit_pkg::PORTS*64-1:0]     araddr,
    output logic [                m3vit_pkg::PORTS*8-1:0]     arlen,
    output logic [                  m3vit_pkg::PORTS-1:0]     arvalid,
    input  logic [                  m3vit_pkg::PORTS-1:0]     arready,
    input  logic [m3vit_pkg::PORTS*engine_pkg::PORT_BITS-1:0] rdata,
    input  logic [                m3vit_pkg::PORTS*2-1:0]     rresp,
    input  logic [                  m3vit_pkg::PORTS-1:0]     rlast,
    input  logic [                  m3vit_pkg::PORTS-1:0]     rvalid,
    output logic [                  m3vit_pkg::PORTS-1:0]     rready
);
  localparam int TB = engine_pkg::TOKEN_BITS;
  localparam int EB = engine_pkg::ENTRY_BITS;
  localparam int JB = engine_pkg::JOB_TAG_BITS;
  assign request_valid[0] = weights_valid;
  assign request_offset[31:0] = weights_offset;
  assign request_entry[EB-1:0] = weights_entry;
  assign request_job_tag[JB-1:0] = weights_job_tag;

  reader u_reader (.*);

  row_source #(
      .CAPACITY(INPUT_RING),
      .ROW_LINE_BITS(engine_pkg::INPUT_LINE_BITS)
  ) u_input_rows (
      .clk,
      .rst,
      .layer_valid    (layer_valid[0]),
      .layer_skip     (layer_skip[0]),
      .tokens         (layer_tokens[TB-1:0]),
      .row_lines      (input_row_lines),
      .rows           (layer_rows[31:0]),
      .entry          (layer_entry[EB-1:0]),
      .job_tag        (layer_job_tag[JB-1:0]),
      .layer_advance  (layer_advance[0]),
      .request_valid  (request_valid[1]),
      .request_ready  (request_ready[1]),
      .request_offset (request_offset[63:32]),
      .request_entry  (request_entry[2*EB-1:EB]),
      .request_job_tag(request_job_tag[2*JB-1:JB]),
      .line_valid     (line_valid[1]),
      .line_last,
      .line_keep      (line_keep[0]),
      .freed          (input_freed)
  );
  row_source #(
      .CAPACITY(engine_pkg::RESIDUAL_LINES),
      .ROW_LINE_BITS(engine_pkg::OUTPUT_LINE_BITS)
  ) u_residual_rows (
      .clk,
      .rst,
      .layer_valid    (layer_valid[1]),
      .layer_skip     (layer_skip[1]),
      .tokens         (layer_tokens[2*TB-1:TB]),
      .row_lines      (residual_row_lines),
      .rows           (layer_rows[63:32]),
      .entry          (layer_entry[2*EB-1:EB]),
      .job_tag        (layer_job_tag[2*JB-1:JB]),
      .layer_advance  (layer_advance[1]),
      .request_valid  (request_valid[2]),
      .request_ready  (request_ready[2]),
      .request_offset (request_offset[95:64]),
      .request_entry  (request_entry[3*EB-1:2*EB]),
      .request_job_tag(request_job_tag[3*JB-1:2*JB]),
      .line_valid     (line_valid[2]),
      .line_last,
      .line_keep      (line_keep[1]),
      .freed          ($clog2(engine_pkg::RESIDUAL_LINES + 1)'(residual_freed))
  );
endmodule
