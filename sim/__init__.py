"""Cycle-approximate simulation of the engine: docs/simulator.md."""
