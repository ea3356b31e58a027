"""Data sets, partitions and fixed feature maps."""
