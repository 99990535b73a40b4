"""What a model makes: samples and pictures, from a checkpoint and images; no files."""
