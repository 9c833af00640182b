"""Studies: what schedules do when constants are wrong, and how they move with importance, heterogeneity, drift, start and size."""
