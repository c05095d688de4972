"""`python -m featstore`: the command line."""

from featstore.cli import main

main()
