"""`python -m meshq` is `meshq`."""

from __future__ import annotations

from meshq.cli import main

if __name__ == "__main__":
    main()
