"""How fast the runtime trains: client-local-steps per second of every path against an ordinary PyTorch loop."""
