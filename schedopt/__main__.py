"""``python -m schedopt``."""

from schedopt.cli import main

main()
