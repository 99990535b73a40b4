"""The diffusion process: tensors in, tensors out; no files, no devices, no printing."""
