"""Build side: recipes and the builder that turns published weights into model packs. Not shipped in the wheel."""

import appliance  # noqa: F401 - it switches ONNX Runtime's telemetry off before anything loads it
