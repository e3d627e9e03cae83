"""Codecs that are installed. Nothing is imported, because only the codec process may import them."""

from importlib.util import find_spec
from typing import Final

MODULES: Final = {
    "1.2.840.10008.1.2.4.80": "jpeg_ls",
    "1.2.840.10008.1.2.4.90": "openjpeg",
    "1.2.840.10008.1.2.5": "rle",
    "1.2.840.10008.1.2.4.57": "gdcm",
    "1.2.840.10008.1.2.4.70": "gdcm",
}
"""For each compressed transfer syntax the module of the extra `transcode` that has its codec."""


def list_codecs() -> frozenset[str]:
    """Return the UIDs of the compressed transfer syntaxes whose codecs are installed."""
    if find_spec("numpy") is None:
        return frozenset()
    return frozenset(uid for uid, module in MODULES.items() if find_spec(module) is not None)
