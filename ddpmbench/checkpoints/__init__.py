"""One reader a family of files; every one returns a `Checkpoint`."""
