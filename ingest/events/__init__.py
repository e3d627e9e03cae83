"""Events that leave the node: one sender for webhooks and mails, with a deadline on every step."""
