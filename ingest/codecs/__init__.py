"""Codecs of pixel data, in processes of their own: a codec that crashes or eats memory harms no worker."""
