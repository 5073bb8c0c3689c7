"""One slot's log: what is appended, what is durable, what is committed."""
