"""What a checkpoint is, what it leaves open, and which command evaluates it."""
