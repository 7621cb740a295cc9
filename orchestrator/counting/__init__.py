"""The main job: shards handed to workers until all are counted. What to do is decided by pure functions."""
