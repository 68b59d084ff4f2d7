"""Driver API, its back ends, and the pipeline from photograph to picture (accel and NumPy only)."""
