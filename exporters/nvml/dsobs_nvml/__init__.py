"""NVIDIA GPU readings through NVML."""
