"""From stored votes to certificates and curves, and how far a run is: only the store is read."""
