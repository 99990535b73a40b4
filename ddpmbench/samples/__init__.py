"""Samplers, and metrics of samples from features."""
