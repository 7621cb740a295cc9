"""Attacks on a run's classifier, what they come to, and whether they contradict its certificates."""
