"""The protocol and the round loop over Flower; the only place that touches Flower's internals."""
