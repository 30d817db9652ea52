"""Jobs that survive a crash: written down before money is spent, and read by the next process."""
