"""What goes wrong in production, done on purpose to real servers and real processes: `poe faults`, `poe soak`."""
