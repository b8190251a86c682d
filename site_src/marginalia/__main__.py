"""`python -m marginalia` is the command `marginalia`."""

from marginalia.cli import main

main()
