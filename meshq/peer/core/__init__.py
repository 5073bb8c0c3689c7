"""The peer without its shell: everything a peer decides. Events in, effects out; no I/O, clock or
randomness.
"""
