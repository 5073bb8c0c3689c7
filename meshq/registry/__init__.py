"""The registry: what the system slot's log means."""
