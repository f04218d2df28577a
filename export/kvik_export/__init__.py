"""From PyTorch to one plain ONNX file, and the proof that every engine computes the same."""
