"""The engine in SystemVerilog (rtl/), the simulated board around it (board/), cocotb benches and what runs them."""
