"""DICOM messages, files and associations (PS3.7, PS3.8, PS3.10) as values and pure functions, without I/O."""
