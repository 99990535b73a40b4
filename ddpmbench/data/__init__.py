"""The images that a model is evaluated on."""
