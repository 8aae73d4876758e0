"""What this package does to the process and the machine: threads, memory, files of the user."""
