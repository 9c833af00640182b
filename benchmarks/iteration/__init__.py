"""What one iteration of the published route costs, by the way its subproblem is modelled. ``python -m benchmarks.iteration`` runs it."""
