# What the three scripts share: the preset's generated header, the project and its sources.
#   M3VIT_HARDWARE   preset of the engine (ci, zcu104); default zcu104
#   M3VIT_HLS_MHZ    target clock; default 200
#   M3VIT_HLS_PART   device; default the ZCU104's
#   M3VIT_PYTHON     Python with this repository's requirements; default python3

proc setting {name default} {
    if {[info exists ::env($name)] && $::env($name) ne ""} { return $::env($name) }
    return $default
}

set root [file normalize [file join [file dirname [info script]] .. ..]]
set preset [setting M3VIT_HARDWARE zcu104]
set mhz [setting M3VIT_HLS_MHZ 200]
set part [setting M3VIT_HLS_PART xczu7ev-ffvc1156-2-e]
set python [setting M3VIT_PYTHON python3]

# Prints the folder it wrote; its name holds the preset and the hash of everything the engine is built with.
cd $root
set generated [file normalize [lindex [split [string trim \
    [exec $python -m accel.generate --hardware $preset --out [file join build generated]]] "\n"] end]]
if {![file isfile [file join $generated m3vit_config.h]]} {
    error "$generated: expected m3vit_config.h from `python -m accel.generate`"
}
set build [file tail $generated]

# The header comes from the configuration and from nowhere else.
set flags "-std=c++17 -I$root/hls_src -I$root/hls_src/engine -I$generated -Wno-unknown-pragmas"

proc begin_project {} {
    global root build flags part mhz
    set folder [file join $root build vitis]
    file mkdir $folder
    cd $folder
    open_project $build
    set_top m3vit_engine
    foreach file [lsort [glob [file join $root hls_src engine *.cpp]]] {
        add_files $file -cflags $flags
    }
    # The simulation of processes and streams is part of the design in C simulation, and empty in synthesis.
    foreach file {fiber.cpp simulation.cpp} {
        add_files -tb [file join $root hls_src simulation $file] -cflags $flags
    }
    add_files -tb [file join $root hls_src bench testbench.cpp] -cflags $flags
    open_solution -flow_target vivado solution
    set_part $part
    create_clock -period [expr {1000.0 / $mhz}] -name default
    # No registers but those of docs/reference.md (accel/registers.py).
    config_interface -s_axilite_mailbox none -s_axilite_auto_restart_counter 0 -s_axilite_sw_reset=false
    config_interface -m_axi_addr64=true
    # Tokens flow backward too (freed, rows_freed, retired; docs/hls.md, Tokens): strict mode calls that a loop of
    # processes. A warning, because it is meant; that it cannot deadlock is what the tests of stream depths show.
    config_dataflow -strict_mode warning
}
