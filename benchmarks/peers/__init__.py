"""meshq beside what people use today: the same work, in one run, on one machine (`make bench-peers`)."""
