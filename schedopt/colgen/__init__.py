"""Column generation for many devices: tabulated pricing by workers, the loop around the master, rounding, and a separable bound."""
