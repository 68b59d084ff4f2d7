# Builds the overlay: block design, synthesis, implementation, bitstream, handoff, reports.
#   vivado -mode batch -source bitstreams/overlay.tcl -tclargs build/overlay/.../parameters.tcl
# `make overlay` writes the parameters first (bitstreams/generate.py) and the manifest afterwards. Everything that a
# number or a name of the configuration decides comes from the parameters.
source [lindex $argv 0]

proc connect_pins {source args} {
    foreach sink $args {
        connect_bd_net [get_bd_pins $source] [get_bd_pins $sink]
    }
}

proc connect_interfaces {master slave} {
    connect_bd_intf_net [get_bd_intf_pins $master] [get_bd_intf_pins $slave]
}

proc smartconnect {name masters} {
    set cell [create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect:1.0 $name]
    set_property -dict [list CONFIG.NUM_SI 1 CONFIG.NUM_MI $masters CONFIG.NUM_CLKS 1] $cell
    connect_pins $::clock $name/aclk
    connect_pins $::reset $name/aresetn
}

# ---- project
create_project $m3vit(name) [file join $m3vit(folder) project] -part $m3vit(part) -force
set boards [get_board_parts -quiet -latest_file_version $m3vit(board):*]
if {[llength $boards] == 0} {
    error "board files of $m3vit(board): expected them in Vivado's store, found none; install them (xhub::install)"
}
set_property board_part [lindex $boards 0] [current_project]
add_files -norecurse $m3vit(sources)
if {$m3vit(engine) eq "hls"} {
    set_property ip_repo_paths [list $m3vit(ip_repository)] [current_project]
    update_ip_catalog
}
update_compile_order -fileset sources_1

# ---- processor
create_bd_design $m3vit(name)
set ps $m3vit(ps)
create_bd_cell -type ip -vlnv xilinx.com:ip:zynq_ultra_ps_e $ps
apply_bd_automation -rule xilinx.com:bd_rule:zynq_ultra_ps_e -config {apply_board_preset "1"} [get_bd_cells $ps]
set processor [list \
    CONFIG.PSU__USE__M_AXI_GP0 1 CONFIG.PSU__USE__M_AXI_GP1 0 CONFIG.PSU__USE__M_AXI_GP2 0 \
    CONFIG.PSU__USE__IRQ0 1 CONFIG.PSU__USE__FABRIC__RST 1 \
    CONFIG.PSU__FPGA_PL0_ENABLE 1 CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ $m3vit(clock_mhz)]
for {set port 0} {$port < [llength $m3vit(ports)]} {incr port} {
    # S_AXI_HP0_FPD is called S_AXI_GP2 in parameters, and so on.
    set number [expr {$port + 2}]
    lappend processor CONFIG.PSU__USE__S_AXI_GP$number 1 CONFIG.PSU__SAXIGP${number}__DATA_WIDTH $m3vit(port_bits)
}
set_property -dict $processor [get_bd_cells $ps]
set clock $ps/pl_clk0
connect_pins $clock $ps/maxihpm0_fpd_aclk

# ---- resets: one of the system, one of the engine that the GPIO holds as well
create_bd_cell -type ip -vlnv xilinx.com:ip:proc_sys_reset:5.0 system_reset
create_bd_cell -type ip -vlnv xilinx.com:ip:proc_sys_reset:5.0 engine_reset
set_property -dict [list CONFIG.C_AUX_RESET_HIGH 0 CONFIG.C_AUX_RST_WIDTH 4] [get_bd_cells engine_reset]
connect_pins $clock system_reset/slowest_sync_clk engine_reset/slowest_sync_clk
connect_pins $ps/pl_resetn0 system_reset/ext_reset_in engine_reset/ext_reset_in
set reset system_reset/peripheral_aresetn
set run $m3vit(reset_cell)/gpio_io_o
create_bd_cell -type ip -vlnv xilinx.com:ip:axi_gpio:2.0 $m3vit(reset_cell)
set_property -dict [list CONFIG.C_GPIO_WIDTH 1 CONFIG.C_ALL_OUTPUTS 1 CONFIG.C_DOUT_DEFAULT 0x00000001] \
    [get_bd_cells $m3vit(reset_cell)]
connect_pins $run engine_reset/aux_reset_in

# ---- engine
set engine $m3vit(engine_cell)
if {$m3vit(engine) eq "rtl"} {
    create_bd_cell -type module -reference $m3vit(engine_module) $engine
} else {
    create_bd_cell -type ip -vlnv $m3vit(engine_vlnv) $engine
}
connect_pins $clock $engine/ap_clk
connect_pins engine_reset/peripheral_aresetn $engine/ap_rst_n

# ---- memory: every port through a gate, so that the engine can be reset in the middle of a burst
set port 0
foreach master $m3vit(ports) {
    create_bd_cell -type module -reference m3vit_axi_gate gate_$port
    set_property -dict [list CONFIG.DATA_BITS $m3vit(port_bits)] [get_bd_cells gate_$port]
    smartconnect memory_$port 1
    connect_pins $clock gate_$port/ap_clk $ps/saxihp${port}_fpd_aclk
    connect_pins $reset gate_$port/ap_rst_n
    connect_pins $run gate_$port/run
    connect_interfaces $engine/$master gate_$port/s_axi
    connect_interfaces gate_$port/m_axi memory_$port/S00_AXI
    connect_interfaces memory_$port/M00_AXI $ps/S_AXI_HP${port}_FPD
    incr port
}

# ---- interrupt
create_bd_cell -type ip -vlnv xilinx.com:ip:axi_intc:4.1 $m3vit(interrupt_cell)
set_property -dict [list CONFIG.C_IRQ_CONNECTION 1 CONFIG.C_IRQ_IS_LEVEL 1] [get_bd_cells $m3vit(interrupt_cell)]
connect_pins $engine/$m3vit(interrupt_pin) $m3vit(interrupt_cell)/intr
connect_pins $m3vit(interrupt_cell)/irq $ps/pl_ps_irq0

# ---- registers
smartconnect registers [llength $m3vit(slaves)]
connect_interfaces $ps/M_AXI_HPM0_FPD registers/S00_AXI
set number 0
foreach slave $m3vit(slaves) {
    lassign $slave cell interface offset range
    connect_interfaces registers/[format M%02d_AXI $number] $cell/$interface
    if {$cell ne $engine} {
        connect_pins $clock $cell/s_axi_aclk
        connect_pins $reset $cell/s_axi_aresetn
    }
    incr number
}

# ---- addresses
foreach slave $m3vit(slaves) {
    lassign $slave cell interface offset range
    assign_bd_address -offset $offset -range $range -target_address_space [get_bd_addr_spaces $ps/Data] \
        [get_bd_addr_segs $cell/$interface/*]
}
set port 0
foreach master $m3vit(ports) {
    # An HLS engine puts "Data_" before the name.
    assign_bd_address -offset 0x00000000 -range $m3vit(memory_bytes) \
        -target_address_space [get_bd_addr_spaces $engine/*$master] [get_bd_addr_segs gate_$port/s_axi/*]
    assign_bd_address -offset 0x00000000 -range $m3vit(memory_bytes) \
        -target_address_space [get_bd_addr_spaces gate_$port/m_axi] \
        [get_bd_addr_segs $ps/SAXIGP[expr {$port + 2}]/HP${port}_DDR_LOW]
    incr port
}
validate_bd_design
save_bd_design

# ---- implementation
set design [get_files $m3vit(name).bd]
add_files -norecurse [make_wrapper -files $design -top]
set_property top $m3vit(name)_wrapper [current_fileset]
generate_target all $design
set_property strategy Performance_ExplorePostRoutePhysOpt [get_runs impl_1]
launch_runs impl_1 -to_step write_bitstream
wait_on_run impl_1
if {[get_property PROGRESS [get_runs impl_1]] ne "100%"} {
    error "implementation: [get_property STATUS [get_runs impl_1]]"
}
open_run impl_1
set slack [get_property SLACK [get_timing_paths -delay_type max]]
set hold [get_property SLACK [get_timing_paths -delay_type min]]
report_timing_summary -file [file join $m3vit(folder) timing.txt]
report_utilization -hierarchical -file [file join $m3vit(folder) utilization.txt]
report_power -file [file join $m3vit(folder) power.txt]
if {$slack < 0 || $hold < 0} {
    error "timing: expected no negative slack at $m3vit(clock_mhz) MHz, found setup $slack ns, hold $hold ns"
}

# ---- overlay
set project [file join $m3vit(folder) project]
file copy -force [file join $project $m3vit(name).runs impl_1 $m3vit(name)_wrapper.bit] \
    [file join $m3vit(folder) $m3vit(name).bit]
file copy -force [file join $project $m3vit(name).gen sources_1 bd $m3vit(name) hw_handoff $m3vit(name).hwh] \
    [file join $m3vit(folder) $m3vit(name).hwh]
set report [open [file join $m3vit(folder) build.txt] w]
puts $report "tool Vivado [version -short]"
puts $report "clock_mhz $m3vit(clock_mhz)"
puts $report "setup_slack_ns $slack"
puts $report "hold_slack_ns $hold"
close $report
