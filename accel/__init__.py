"""The contract: configuration, number formats, bundle, commands, compiler and golden integer model (NumPy only)."""
