# C synthesis, and the comparison of its reports with what the engine needs:
#   vitis_hls -f hls_src/tcl/synthesize.tcl
source [file join [file dirname [file normalize [info script]]] common.tcl]
begin_project
csynth_design
cd $root
set report [file join build vitis $build solution syn report csynth.xml]
if {[catch {exec $python -m hls_src.csynth_check $report --hardware $preset --clock $mhz >@ stdout 2>@ stderr}]} {
    puts "csynth_check: a figure is not met, see above"
    exit 1
}
exit 0
