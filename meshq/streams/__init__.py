"""What a slot's log means: partitions, offsets, producers' sequences, and who reads them."""
