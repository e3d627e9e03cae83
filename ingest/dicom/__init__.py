"""PS3.7, PS3.8 and PS3.10 without I/O of their own: what to send and what was received, as values."""
