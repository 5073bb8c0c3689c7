"""The client: one machine for publishing and reading, and the shells around it."""
