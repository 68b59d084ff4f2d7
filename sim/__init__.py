"""Cycle-approximate simulation of the engine; nothing is here yet."""
