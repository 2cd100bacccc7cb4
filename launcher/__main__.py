"""`python -m launcher` is `zlaunch`."""

from launcher.cli import main

main()
