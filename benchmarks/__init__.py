"""Load for a receiver of DICOM over TLS, and what it costs the receiver."""
