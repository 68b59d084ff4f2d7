// Everything about commands: registers, fetch and check, the table of commands in flight, counters and the record. The
// units that do the work see the table through views, and give back events.
module sequencer (
    input  logic                                        clk,
    input  logic                                        rst,
    // AXI4-Lite
    input  logic [11:0]                                 awaddr,
    input  logic                                        awvalid,
    output logic                                        awready,
    input  logic [31:0]                                 wdata,
    input  logic [3:0]                                  wstrb,
    input  logic                                        wvalid,
    output logic                                        wready,
    output logic [1:0]                                  bresp,
    output logic                                        bvalid,
    input  logic                                        bready,
    input  logic [11:0]                                 araddr,
    input  logic                                        arvalid,
    output logic                                        arready,
    output logic [31:0]                                 rdata,
    output logic [1:0]                                  rresp,
    output logic                                        rvalid,
    input  logic                                        rready,
    output logic                                        interrupt_line,
    // Program
    output logic                                        clear,  // pulse: a program starts
    output logic                                        running,
    output logic [m3vit_pkg::PORTS*64-1:0]              arena,
    // Commands from memory
    output logic                                        command_request_valid,
    input  logic                                        command_request_ready,
    output logic [31:0]                                 command_request_offset,
    input  logic                                        command_data_valid,
    input  logic [m3vit_pkg::COMMAND_BITS-1:0]          command_data,
    input  logic                                        command_data_error,
    // Views of the table
    output logic [engine_pkg::VIEWS-1:0]                layer_valid,
    output logic [engine_pkg::VIEWS*engine_pkg::LAYER_BITS-1:0] layer,
    output logic [engine_pkg::VIEWS*engine_pkg::ENTRY_BITS-1:0] entry,
    input  logic [engine_pkg::VIEWS-1:0]                layer_advance,
    output logic                                        retire,  // pulse; `oldest` then names the entry
    output logic [engine_pkg::ENTRY_BITS-1:0]           oldest,
    input  logic [engine_pkg::ENTRIES-1:0]              entry_written,
    // Bus errors
    input  logic                                        read_error,
    input  logic [engine_pkg::ENTRY_BITS-1:0]           read_error_entry,
    input  logic [7:0]                                  read_error_port,
    input  logic                                        write_error,
    input  logic [engine_pkg::ENTRY_BITS-1:0]           write_error_entry,
    input  logic [7:0]                                  write_error_port,
    output logic                                        halt,
    input  logic                                        reads_idle,
    input  logic                                        writes_idle,
    // Events for the counters
    input  logic                                        beat,
    input  logic                                        beat_gate,
    input  logic [engine_pkg::JOB_TAG_BITS-1:0]         beat_job_tag,
    input  logic                                        layer_first_beat,
    input  logic                                        layer_last_beat,
    input  logic [4:0]                                  stall,  // weights, input, route, drain, store from bit 0
    input  logic                                        reading,
    input  logic                                        stripe_requested,
    input  logic                                        stripe_is_weight,
    input  logic                                        stripe_done,
    input  logic [engine_pkg::JOB_TAG_BITS-1:0]         stripe_job_tag,
    input  logic                                        layer_experts_valid,
    input  logic [engine_pkg::ENTRY_BITS-1:0]           layer_experts_entry,
    input  logic [engine_pkg::EXPERT_BITS-1:0]          layer_experts,
    input  logic                                        job_crc_valid,
    input  logic [engine_pkg::ENTRY_BITS-1:0]           job_crc_entry,
    input  logic [31:0]                                 job_crc,
    // Record, 64 bytes at a time
    output logic                                        rec_valid,
    input  logic                                        rec_ready,
    output logic [31:0]                                 rec_address,
    output logic [511:0]                                rec_data,
    input  logic                                        rec_done
);
  logic start_valid, start_taken, done;
  logic [31:0] program_offset, commands, record_offset;
  control u_control (
      .clk,
      .rst,
      .awaddr,
      .awvalid,
      .awready,
      .wdata,
      .wstrb,
      .wvalid,
      .wready,
      .bresp,
      .bvalid,
      .bready,
      .araddr,
      .arvalid,
      .arready,
      .rdata,
      .rresp,
      .rvalid,
      .rready,
      .interrupt_line,
      .start_valid,
      .start_taken,
      .done,
      .arena,
      .program_offset,
      .commands,
      .record_offset
  );

  logic check_start, check_done;
  m3vit_pkg::command_t check_command;
  logic [31:0] check_index;
  logic [engine_pkg::JOB_TAG_BITS-1:0] check_job_tag;
  logic [engine_pkg::ERROR_BITS-1:0] check_code;
  logic [7:0] check_detail;
  engine_pkg::layer_t check_layer, push_layer, retire_layer;
  check u_check (
      .clk,
      .rst,
      .start  (check_start),
      .command(check_command),
      .index  (check_index),
      .job_tag(check_job_tag),
      .done   (check_done),
      .code   (check_code),
      .detail (check_detail),
      .layer  (check_layer)
  );

  logic push_valid, push_ready, table_empty, jobs_room, job_pushed;
  logic failed, failed_write, command_executed, record_start, record_done;
  logic [7:0] failed_port, error_detail;
  logic [engine_pkg::ERROR_BITS-1:0] error;
  logic [31:0] error_command, commands_done;
  fetch u_fetch (
      .clk,
      .rst,
      .start_valid,
      .start_taken,
      .clear,
      .program_offset,
      .commands,
      .command_request_valid,
      .command_request_ready,
      .command_request_offset,
      .command_data_valid,
      .command_data,
      .command_data_error,
      .check_start,
      .check_command,
      .check_index,
      .check_job_tag,
      .check_done,
      .check_code,
      .check_detail,
      .check_layer,
      .push_valid,
      .push_ready,
      .push_layer,
      .table_empty,
      .jobs_room,
      .job_pushed,
      .failed,
      .failed_write,
      .failed_port,
      .failed_index(retire_layer.index),
      .halt,
      .reads_idle,
      .writes_idle,
      .running,
      .command_executed,
      .record_start,
      .record_done,
      .error,
      .error_command,
      .error_detail,
      .commands_done,
      .done
  );

  entry_table u_table (
      .clk,
      .rst,
      .clear,
      .push_valid,
      .push_ready,
      .push_layer,
      .empty(table_empty),
      .layer_valid,
      .layer,
      .entry,
      .layer_advance,
      .entry_written,
      .job_crc_valid,
      .job_crc_entry,
      .retire,
      .retire_layer,
      .oldest,
      .read_error,
      .read_error_entry,
      .read_error_port,
      .write_error,
      .write_error_entry,
      .write_error_port,
      .failed,
      .failed_write,
      .failed_port
  );

  logic job_valid, job_pop, jobs_empty;
  logic [5:0] select;
  logic [63:0] value;
  counters u_counters (
      .clk,
      .rst,
      .clear,
      .running,
      .ending      (record_start),
      .beat,
      .beat_gate,
      .beat_job_tag,
      .layer_first_beat,
      .layer_last_beat,
      .stall,
      .reading,
      .stripe_requested,
      .stripe_is_weight,
      .stripe_done,
      .stripe_job_tag,
      .command_executed,
      .retire,
      .retire_layer,
      .retire_entry(oldest),
      .layer_experts_valid,
      .layer_experts_entry,
      .layer_experts,
      .job_crc_valid,
      .job_crc_entry,
      .job_crc,
      .job_pushed,
      .jobs_room,
      .job_valid,
      .job_pop,
      .jobs_empty,
      .select,
      .value
  );

  record u_record (
      .clk,
      .rst,
      .clear,
      .record_offset,
      .record_start,
      .record_done,
      .error,
      .error_command,
      .error_detail,
      .commands_done,
      .job_valid,
      .job_pop,
      .jobs_empty,
      .select,
      .value,
      .rec_valid,
      .rec_ready,
      .rec_address,
      .rec_data,
      .rec_done
  );
endmodule
