"""From sources to an overlay: parameters, wrapper and checks around the Vivado scripts."""
