"""Data sets on their way out: how a stored one is changed for a destination. The store stays as it is."""
