"""`python -m utils` is `tbt`."""

from utils.cli.main import main

main()
