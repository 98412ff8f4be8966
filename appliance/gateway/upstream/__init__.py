"""Other engines on the LAN, each family with its own ways."""
