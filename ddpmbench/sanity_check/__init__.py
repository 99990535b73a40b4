"""Is the checkpoint evaluated as it was trained? Tried before long runs."""
