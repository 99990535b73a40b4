"""One module a capability; the commands and `import ddpmbench` offer nothing else."""
