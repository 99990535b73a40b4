"""One reader per family of files; each returns a `Checkpoint`."""
