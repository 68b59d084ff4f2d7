"""Quantization-aware training under the numeric contract, export to integer parameters, ONNX."""
