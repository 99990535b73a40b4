"""Training a reference DDPM, so that there is something to evaluate."""
