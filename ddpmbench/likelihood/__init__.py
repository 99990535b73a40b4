"""From a model, images and a design to the bound: pure loops and reductions, no files."""
