"""Samplers, and pictures along their chains."""
