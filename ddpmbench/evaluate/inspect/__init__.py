"""What a checkpoint is, which settings it lacks, and the command that evaluates it."""
