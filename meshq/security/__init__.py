"""Who may do what in a mesh, and how one proves it.

One key, the *authority*, signs everything that is trusted: the mesh's genesis and the certificates of peers
and clients. A host that can check one signature needs no further party. Read in this order:

    text            names, keys, times and addresses as people see them
    files           private files: 0600, replaced whole, refused when others can read them
    signing         signatures over exact bytes with domain separation
    identity        a peer's own keys
    authority       the mesh's key and its recovery secret
    certificates    what the authority says about a peer or a client
    genesis         what the mesh was made of
    keyring         the shared keys of gossip
    tokens          invitations: how they look, and what is kept of them
    door            the exchange by which a host joins, or shows a certificate not heard of yet
    credentials     the file a client is given
    authorization   what a key may publish and read
    directory       a peer's data directory as a whole

Nothing here opens a socket or reads a clock: `now` comes in, in seconds since 1970.
"""
