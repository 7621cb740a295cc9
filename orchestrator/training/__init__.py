"""`stn train`, and the figures of its epochs."""
