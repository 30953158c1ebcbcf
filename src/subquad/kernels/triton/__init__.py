"""Kernels for NVIDIA GPUs, written in Triton; triton itself is imported at the first call."""
