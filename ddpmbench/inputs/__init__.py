"""What is evaluated: images and checkpoints."""
