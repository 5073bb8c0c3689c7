"""A peer: the machines composed (`core`, without I/O) and the shell that drives them with sockets, disk and
clock.
"""
