"""Llama-style decoders: read from GGUF or safetensors, written as ONNX graphs without torch."""
