"""Engines, Ray, ONNX and the bench."""
