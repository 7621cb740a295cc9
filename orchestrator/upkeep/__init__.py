"""Looking after runs and machines: verify what a run holds, clean up after crashes, see what is missing to begin."""
