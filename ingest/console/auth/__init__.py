"""Users, tokens, sessions and what they may do."""
