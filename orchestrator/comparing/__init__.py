"""Runs held against each other on the same images."""
