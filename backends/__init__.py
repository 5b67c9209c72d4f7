"""Everything that is written or run: Hugging Face, ONNX and TorchScript, and the executors."""
