"""The live part of the console: one snapshot for all browsers, and the parts of pages that follow it."""
