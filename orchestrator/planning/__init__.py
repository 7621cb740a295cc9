"""From a spec to a plan: what a run is, resolved, fingerprinted, and what it will cost."""
