"""The outbox: a producer's own durable queue of what the mesh has not acknowledged.

layout      keys and rows, and their checksums
words       what the machine is told and what it orders
machine     what is queued, bound, sent, committed, parked; no I/O, no clock
store       its disk: one LMDB environment, one thread, one sync for everything that waits
outbox      the shell of it all
fates       whom to tell what became of a record
receipts    what a caller holds: queued now, committed later
producer    a producer that hands its records to an outbox
"""
