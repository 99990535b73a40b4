"""Metrics of samples from features: FID, KID, Inception score, precision and recall."""
