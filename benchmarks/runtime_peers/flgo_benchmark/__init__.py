"""The workload as FLGo wants it: a package whose ``core`` has a pipe of the data and a calculator of the loss."""
