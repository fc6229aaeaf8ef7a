"""`python -m secondpass` is the command `secondpass`."""

from secondpass.cli import main

main()
