"""Writes the hub's three ONNX graphs of an Idefics3 or SmolVLM checkpoint."""
