"""fedsec: federated learning among parties that do not trust each other, on Flower."""

__version__ = "0.1.0"
