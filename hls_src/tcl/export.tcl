# The IP for Vivado; its version names the build, so that an overlay says which engine it holds:
#   vitis_hls -f hls_src/tcl/export.tcl                (after synthesize.tcl)
source [file join [file dirname [file normalize [info script]]] common.tcl]
begin_project
export_design -format ip_catalog -vendor m3vit -library engine -ipname m3vit_engine -version 1.0 \
    -display_name "M3ViT expert engine ($build)" -description "HLS build $build" \
    -output [file join $root build vitis "$build.zip"]
exit 0
