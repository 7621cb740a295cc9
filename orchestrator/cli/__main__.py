"""`python -m orchestrator.cli`: `stn` where no script is installed."""

from orchestrator.cli import main

main()
