"""The libraries of the extra `transcode`: decode and encode one frame. Only the codec process imports them.

| transfer syntax | decoder | encoder |
|---|---|---|
| JPEG-LS Lossless | pyjpegls (CharLS) | pyjpegls |
| JPEG 2000 Lossless | pylibjpeg-openjpeg | pylibjpeg-openjpeg |
| RLE Lossless | pylibjpeg-rle | pylibjpeg-rle |
| JPEG Lossless | python-gdcm | none |

A frame between the two is native: little endian, color by pixel, in words of Bits Allocated.
"""

from typing import Any, Final

import numpy as np

from ingest.codecs.frame import FrameJob, FrameLayout

JPEG_LS: Final = "1.2.840.10008.1.2.4.80"
JPEG_2000: Final = "1.2.840.10008.1.2.4.90"
RLE: Final = "1.2.840.10008.1.2.5"
JPEG_LOSSLESS: Final = frozenset({"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"})


class CodecError(Exception):
    """A frame that a codec does not decode to what its attributes say."""


def transcode_frame(job: FrameJob, frame: bytes) -> bytes:
    """Return a frame in the wanted transfer syntax.

    Raises:
        Exception: The codec refuses the frame; each library has errors of its own.
    """
    native = _decode(job, frame)
    match job.wanted:
        case "1.2.840.10008.1.2.4.80":
            return _encode_jpeg_ls(job.layout, native)
        case "1.2.840.10008.1.2.4.90":
            return _encode_jpeg_2000(job.layout, native)
        case "1.2.840.10008.1.2.5":
            return _encode_rle(job.layout, native)
        case _:
            return native


def _decode(job: FrameJob, frame: bytes) -> bytes:
    layout = job.layout
    match job.stored:
        case "1.2.840.10008.1.2.4.80":
            decoded, is_planar = _decode_jpeg_ls(layout, frame)
        case "1.2.840.10008.1.2.4.90":
            decoded, is_planar = _decode_jpeg_2000(layout, frame), False
        case "1.2.840.10008.1.2.5":
            decoded, is_planar = _decode_rle(layout, frame), True
        case syntax if syntax in JPEG_LOSSLESS:
            decoded, is_planar = _decode_jpeg_lossless(layout, frame, syntax), layout.is_planar
        case _:
            decoded, is_planar = frame, layout.is_planar
    if len(decoded) != layout.size_bytes:
        raise CodecError(f"a frame has {len(decoded)} bytes, and its attributes say {layout.size_bytes}")
    if is_planar and layout.samples > 1:
        pixels = np.frombuffer(decoded, _word(layout)).reshape(layout.samples, -1)
        return np.ascontiguousarray(pixels.T).tobytes()
    return decoded


def _word(layout: FrameLayout) -> str:
    return f"<{'i' if layout.is_signed else 'u'}{layout.bits_allocated // 8}"


def _fits_bits_stored(layout: FrameLayout, native: bytes) -> bool:
    """Return whether no pixel uses the bits beyond Bits Stored, except for its sign."""
    if layout.bits_stored == layout.bits_allocated:
        return True
    pixels = np.frombuffer(native, _word(layout))
    if layout.is_signed:
        half = 1 << (layout.bits_stored - 1)
        return -half <= int(pixels.min()) and int(pixels.max()) < half
    return int(pixels.max()) < 1 << layout.bits_stored


def _narrow(layout: FrameLayout, native: bytes, bits: int) -> bytes:
    """Return samples of at most eight bits in bytes, as encoders want them."""
    if bits > 8 or layout.bits_allocated == 8:
        return native
    kind = "i1" if layout.is_signed else "u1"
    return bytes(np.frombuffer(native, _word(layout)).astype(kind).tobytes())


def _widen(layout: FrameLayout, decoded: bytes, precision: int) -> bytes:
    """Return samples of at most eight bits in words of Bits Allocated."""
    if precision > 8 or layout.bits_allocated == 8:
        return decoded
    kind = "i1" if layout.is_signed else "u1"
    return np.frombuffer(decoded, kind).astype(_word(layout)).tobytes()


def _encode_jpeg_ls(layout: FrameLayout, native: bytes) -> bytes:
    import jpeg_ls  # noqa: PLC0415 - each codec is imported with its first frame

    # JPEG-LS has no sign. With all allocated bits, a decoder returns the words as they were.
    is_narrow = not layout.is_signed and _fits_bits_stored(layout, native)
    bits = layout.bits_stored if is_narrow else layout.bits_allocated
    options: dict[str, Any] = {"planar_configuration": 0} if layout.samples > 1 else {}
    return bytes(
        jpeg_ls.encode_pixel_data(
            _narrow(layout, native, bits),
            lossy_error=0,
            rows=layout.rows,
            columns=layout.columns,
            samples_per_pixel=layout.samples,
            bits_stored=bits,
            **options,
        )
    )


def _decode_jpeg_ls(layout: FrameLayout, frame: bytes) -> tuple[bytes, bool]:
    import jpeg_ls  # noqa: PLC0415

    decoded, found = jpeg_ls.decode_pixel_data(frame)
    precision = int(found["bits_per_sample"])
    pixels = bytes(decoded)
    if layout.is_signed and precision < layout.bits_allocated:
        pixels = _extend_sign(layout, pixels, precision)
    elif precision <= 8:
        pixels = _widen(layout, pixels, precision)
    return pixels, found["components"] > 1 and found["interleave_mode"] == 0


def _extend_sign(layout: FrameLayout, decoded: bytes, precision: int) -> bytes:
    words = np.frombuffer(decoded, "u1" if precision <= 8 else "<u2").astype(_word(layout))
    shift = layout.bits_allocated - precision
    extended = np.right_shift(np.left_shift(words, shift), shift)
    return bytes(extended.astype(_word(layout)).tobytes())


def _encode_jpeg_2000(layout: FrameLayout, native: bytes) -> bytes:
    from openjpeg.utils import encode_buffer  # noqa: PLC0415

    bits = layout.bits_stored if _fits_bits_stored(layout, native) else layout.bits_allocated
    is_rgb = layout.photometric in {"RGB", "YBR_RCT"}
    return bytes(
        encode_buffer(
            _narrow(layout, native, bits),
            layout.columns,
            layout.rows,
            layout.samples,
            bits,
            layout.is_signed,
            photometric_interpretation=1 if is_rgb else 2 if layout.samples == 1 else 3,
            use_mct=is_rgb,
        )
    )


def _decode_jpeg_2000(layout: FrameLayout, frame: bytes) -> bytes:
    import openjpeg  # noqa: PLC0415

    found = openjpeg.get_parameters(frame)
    precision = int(found["precision"])
    if bool(found["is_signed"]) != layout.is_signed:
        raise CodecError("the sign of its codestream is not that of Pixel Representation")
    return _widen(layout, bytes(openjpeg.decode_pixel_data(frame, version=2)), precision)


def _encode_rle(layout: FrameLayout, native: bytes) -> bytes:
    import rle  # noqa: PLC0415

    return bytes(
        rle.encode_pixel_data(
            native,
            rows=layout.rows,
            columns=layout.columns,
            samples_per_pixel=layout.samples,
            bits_allocated=layout.bits_allocated,
            byteorder="<",
        )
    )


def _decode_rle(layout: FrameLayout, frame: bytes) -> bytes:
    import rle  # noqa: PLC0415

    return bytes(
        rle.decode_pixel_data(
            frame,
            version=2,
            rows=layout.rows,
            columns=layout.columns,
            bits_allocated=layout.bits_allocated,
            rle_byteorder="<",
        )
    )


def _decode_jpeg_lossless(layout: FrameLayout, frame: bytes, syntax: str) -> bytes:
    import gdcm  # noqa: PLC0415

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((layout.columns, layout.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(layout.photometric)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    if layout.samples > 1:
        image.SetPlanarConfiguration(int(layout.is_planar))
    image.SetPixelFormat(
        gdcm.PixelFormat(
            layout.samples,
            layout.bits_allocated,
            layout.bits_stored,
            layout.bits_stored - 1,
            int(layout.is_signed),
        )
    )
    # GDCM returns the bytes as a text.
    return bytes(image.GetBuffer().encode("utf-8", "surrogateescape"))
