"""An offline AI appliance: one service, five published APIs, models on CPU."""

__version__ = "0.1.0"
