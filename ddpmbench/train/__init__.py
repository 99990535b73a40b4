"""Training of a reference DDPM."""
