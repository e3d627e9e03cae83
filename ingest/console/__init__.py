"""The console: pages and API of a node, in a process of its own."""
