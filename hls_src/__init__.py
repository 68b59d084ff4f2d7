"""The expert engine in Vitis HLS C++ (``engine/``), its C simulation, test bench, Tcl and tools."""
