"""Accuracy of aggregation rules under attack without privacy noise, on skewed image data: all clients in one process."""
