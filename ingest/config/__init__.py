"""Configuration: frozen models, and the readers that turn a file into them.

This package imports nothing by itself: `ingest.config.model` has the models, `ingest.config.reader` reads
files. The package `orthanc` is loaded only for a configuration of Orthanc.
"""
