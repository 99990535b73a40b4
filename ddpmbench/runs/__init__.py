"""What happens on a machine: devices, files, interruptions."""
