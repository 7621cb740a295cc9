"""The page that `stn report` writes: what is on it, its figures, and how it looks."""
