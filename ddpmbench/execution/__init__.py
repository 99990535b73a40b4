"""What happens on a machine: devices, processes, files, interruptions."""
