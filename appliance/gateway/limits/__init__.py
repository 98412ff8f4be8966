"""How much a role may ask of a router in a minute and in a day."""
