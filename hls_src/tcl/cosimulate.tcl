# C simulation, then RTL co-simulation, of a small program with every kind of layer, against the golden model's memory:
#   vitis_hls -f hls_src/tcl/cosimulate.tcl            (after synthesize.tcl)
source [file join [file dirname [file normalize [info script]]] common.tcl]
set cases [file join $root build vitis $build cases]
exec $python -m hls_src.cases --hardware $preset --out $cases
begin_project
set arguments "[file join $cases identify] [file join $cases small]"
csim_design -ldflags "-pthread" -argv $arguments
cosim_design -ldflags "-pthread" -argv $arguments -enable_dataflow_profiling -rtl verilog
exit 0
