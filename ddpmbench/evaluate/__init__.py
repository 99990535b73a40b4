"""What the commands and `import ddpmbench` do: a module for each of them."""
