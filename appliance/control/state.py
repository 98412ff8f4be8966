"""What a running service says of itself to whoever switches releases."""

from __future__ import annotations

from appliance import __version__
from appliance.frozen import tree
from appliance.gateway.catalog import Catalog
from appliance.releases.gate import WriteGate
from appliance.releases.switching import ServiceState


def state_of(catalog: Catalog, gate: WriteGate) -> ServiceState:
    """Return the state of this service. Used on the event loop only."""
    states = {model.manifest.name: model.state for model in catalog.models()}
    return ServiceState(
        version=__version__,
        tree=str(tree()),
        closed=gate.closed,
        loading=list(states.values()).count("loading"),
        broken=[name for name, state in states.items() if state == "failed"],
    )
