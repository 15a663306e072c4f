"""Scripted synthetic clips with exact truth: what the built-in model knows, and what tests and evaluation stand on."""
