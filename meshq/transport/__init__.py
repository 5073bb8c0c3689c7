"""Bytes between hosts: ZeroMQ sockets over TCP, sealed datagrams over UDP, nothing that knows what they mean.

Every TCP socket is CURVE with a ZAP handler that fails closed (`zap.py`), every one is drained in the
asyncio loop by the same helper (`drain.py`), and each has one job: `server.py` answers requests, `feed.py`
publishes to plain subscribers, `ingest.py` takes from plain publishers, `link.py` is this side of one
connection to a peer. Keys are raw 32-byte CURVE keys everywhere.
"""
