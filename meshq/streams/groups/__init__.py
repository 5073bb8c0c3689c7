"""Groups: consumers that share a topic, without a coordinator. What a GROUP entry of a slot's log means.

intervals.py   offsets -> values, as runs
words.py       what a GROUP entry says
standing.py    what a group of any mode has in a partition
state.py       one group in one partition, as the log tells it
table.py       the groups of a slot, and their rows on disk
backoff.py     how long a record waits before it is handed out again
rewound.py     dead letters that a reset has made void
letters.py     dead letters: what is written of a record, and where one is from
hands.py       what desks work with: members, batches in hand, what to fetch and to push
desk.py        the leader's side: who gets what, and what is not acknowledged in time
keyed.py       the same in a keyed group: what waits because its key is busy

ordered groups:
  ordered_state.py   whose a partition is, as the log tells it
  ordered.py         the leader's side: how it changes hands
  roster.py          who takes part, as one leader sees it
  assignment.py      who should have what
"""
