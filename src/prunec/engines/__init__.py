"""What runs programs to look at them: torch, ONNX Runtime, several processes, a cluster."""
