"""An offline AI appliance: one service, five published APIs, models on CPU."""

import os

__version__ = "0.1.0"

# ONNX Runtime's Linux wheels (since 1.29) report models and sessions to their maker unless told not to,
# and they look at this when they are loaded. Nothing of ours may run before this line.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
