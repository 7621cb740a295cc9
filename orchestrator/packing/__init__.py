"""A live network and data set as files that any machine reads."""
