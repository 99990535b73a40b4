"""One module a question; the commands and `import ddpmbench` offer nothing else."""
