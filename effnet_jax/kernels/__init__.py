"""Kernels of the CPU in C++, for what XLA does not do well there."""
