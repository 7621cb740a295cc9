"""What runs on a cluster node: reading images, counting votes, training."""
