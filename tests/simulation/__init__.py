"""The replicated log under a seeded network, disk and clock: `python -m tests.simulation --help`."""
