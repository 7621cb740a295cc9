"""Data sets as they lie: arrays, and encoded images in folders, tar files and Parquet under one index."""
