"""`python -m mobillama.cli`."""

from mobillama.cli import main

main()
