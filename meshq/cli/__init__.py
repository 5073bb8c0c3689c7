"""The command line: `meshq VERB`. What a verb prints and how it exits is a promise.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no peer reachable, 130 interrupted.

    app         the verbs, and how every one of them ends
    options     options that many verbs share; durations and sizes
    reach       a connection to the running peer, or by credentials
    output      tables, JSON, figures, progress
    founding    init, invite, join        up, logs       the running peer
    listing     peers, topics; status     topic, client  changing things
    pub, sub    records in and out, by way of stdio
    demo        the demonstration: demo_mesh, demo_records
"""

from __future__ import annotations

import sys


def main() -> None:
    """The console script."""
    from meshq.cli.app import run

    sys.exit(run(sys.argv[1:]))
