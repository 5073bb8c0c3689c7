"""Who is there: membership by SWIM with Lifeguard; and who might be, by mDNS and from the last run.

`machine.py` decides on each event. What it is made of: `table.py` what is believed of each member
(`known.py`), `probing.py` asking them in turn, `errands.py` asking for others, `suspicion.py` how long to
doubt, `awareness.py` how far to trust oneself, `broadcasts.py` news to pass on, `notes.py` comparing notes,
`mail.py` datagrams going out, `own.py` what this peer says of itself, `reaching.py` writing to the dead and
to addresses that were suggested (`suggestions.py`), `transitions.py` what a member can become.
`wire.py` are its datagrams, `words.py` its events and effects, `settings.py` its pace. `discovery.py` and
`remembered.py` are shells that suggest addresses to it.
"""
