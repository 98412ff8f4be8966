"""TLS on the LAN: the box's own authority and its certificates, or those of the operator."""
