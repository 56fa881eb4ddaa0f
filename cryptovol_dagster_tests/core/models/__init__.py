"""Tests that every model must pass, and of their ONNX graphs."""
