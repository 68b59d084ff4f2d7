# Vivado's commands for a Tcl interpreter without Vivado: each records its call and answers as a successful run would.
#   tclsh bitstreams/stubs.tcl RECORD SCRIPT ARGUMENTS...
# One line per call in RECORD, fields separated by the unit separator. bitstreams/check.py judges them. A command that is
# not here is an error, as is an option that the script gives to none of them.
set record [open [lindex $argv 0] w]
set script [lindex $argv 1]
set argv [lrange $argv 2 end]

proc record {args} {
    puts $::record [join $args "\x1f"]
}

# Splits arguments into options with a value, flags, and the rest.
proc parse {command given valued flags} {
    set options {}
    set rest {}
    for {set i 0} {$i < [llength $given]} {incr i} {
        set word [lindex $given $i]
        if {$word in $flags} {
            lappend options $word 1
        } elseif {$word in $valued} {
            lappend options $word [lindex $given [incr i]]
        } elseif {[string match {-[a-z]*} $word]} {
            error "$command: unknown option $word"
        } else {
            lappend rest $word
        }
    }
    return [list $options $rest]
}

# name, options with a value, flags, answer (evaluated with options in o and the rest in r)
foreach {name valued flags answer} {
    create_project {-part} {-force} {set r}
    current_project {} {} {set _ project}
    current_fileset {} {} {set _ sources_1}
    get_board_parts {} {-quiet -latest_file_version} {string map {* 1.1} $r}
    add_files {} {-norecurse} {}
    update_ip_catalog {} {} {}
    update_compile_order {-fileset} {} {}
    create_bd_design {} {} {set r}
    create_bd_cell {-type -vlnv -reference} {} {set r}
    apply_bd_automation {-rule -config} {} {}
    get_bd_cells {} {} {set r}
    get_bd_pins {} {} {set r}
    get_bd_intf_pins {} {} {set r}
    get_bd_addr_spaces {} {} {set r}
    get_bd_addr_segs {} {} {set r}
    connect_bd_net {} {} {}
    connect_bd_intf_net {} {} {}
    assign_bd_address {-offset -range -target_address_space} {} {}
    validate_bd_design {} {} {}
    save_bd_design {} {} {}
    get_files {} {} {set r}
    make_wrapper {-files} {-top} {set _ [dict get $o -files]_wrapper.v}
    generate_target {} {} {}
    get_runs {} {} {set r}
    launch_runs {-to_step} {} {}
    wait_on_run {} {} {}
    open_run {} {} {}
    get_timing_paths {-delay_type} {} {set _ path}
    report_timing_summary {-file} {} {}
    report_utilization {-file} {-hierarchical} {}
    report_power {-file} {} {}
    version {} {-short} {set _ simulated}
} {
    proc $name {args} [string map [list @NAME $name @VALUED $valued @FLAGS $flags @ANSWER $answer] {
        lassign [parse @NAME $args {@VALUED} {@FLAGS}] o r
        record @NAME {*}$o -- {*}$r
        @ANSWER
    }]
}

proc set_property {args} {
    if {[lindex $args 0] eq "-dict"} {
        lassign $args _ pairs target
    } else {
        set pairs [lrange $args 0 1]
        set target [lindex $args 2]
    }
    foreach {name value} $pairs {
        record set_property $target $name $value
    }
}

proc get_property {name target} {
    record get_property $name $target
    switch $name {
        PROGRESS { return "100%" }
        SLACK { return 0.1 }
        STATUS { return complete }
    }
    error "get_property: unknown property $name"
}

# Files are real, but for those that only Vivado could have written.
rename file real_file
proc file {what args} {
    if {$what eq "copy"} {
        record file_copy {*}[lrange $args end-1 end]
        return
    }
    return [real_file $what {*}$args]
}

source $script
close $record
