"""The bound from a model, images and a design: pure computation, no files."""
