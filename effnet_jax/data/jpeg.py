"""JPEG files as cameras and phones write them: decoded as TensorFlow does, and told apart from damaged ones.

libjpeg complains of much that costs no pixel: odd fields in a scan's header, stray bytes between segments, a missing
end. It reports only the first complaint, which may hide one that matters. So a file that it complains of is written
anew from its segments, as a careful encoder would have written it, and must then decode without a complaint.
"""

import dataclasses
import re

import numpy as np
import simplejpeg

FAST_DCT = True  # as TensorFlow's decode_jpeg
MAX_SCANS = 100  # a progressive photograph has about ten; each passes over the whole image again

_CODED = 0  # in place of a marker: coded data
_SOI, _EOI, _SOS, _DQT, _DHT, _DRI, _DAC = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD, 0xCC
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
_FRAMES = {*range(0xC0, 0xD0)} - {_DHT, 0xC8, _DAC}
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA)
_BARE = (0x01, *range(0xD0, 0xD8))  # without a length: TEM and the restarts
_KEPT = {_DQT, _DHT, _DRI, _DAC, _SOS} | _FRAMES
_EXIF, _XMP = b"Exif\x00\x00", b"http://ns.adobe.com/xap/1.0/\x00"
_JFIF = b"JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_MARKER = re.compile(rb"\xff[^\x00\xff]")
# Where coded data end: FF followed by neither 0 (a stuffed byte), FF (a fill byte) nor a restart.
_END_OF_CODED = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker")
# What libjpeg-turbo says of files that may be sound but are not for it.
_UNSUPPORTED = ("subsampling", "nsupported", "ot implemented")


class Damaged(ValueError):
    """Pixels of a JPEG are lost. The message says what is wrong with it."""


class Unsupported(ValueError):
    """A kind of JPEG that simplejpeg does not decode."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """One scan: which coefficients of which components it holds, down to which bit; and its place in `segments`."""

    components: tuple[int, ...]
    first: int
    last: int
    low: int
    place: int


@dataclasses.dataclass
class Jpeg:
    """A JPEG taken apart.

    Attributes:
      height: in pixels.
      width: in pixels.
      components: their ids.
      process: the frame's marker: 0xC0 for baseline, 0xC2 for progressive.
      segments: (marker, body) of all that matters for the pixels; coded data follow each scan's header.
      scans: all scans; only the first where the file was read up to there.
      exif: the EXIF block, empty where there is none.
      xmp: the XMP block, likewise.
    """

    height: int = 0
    width: int = 0
    components: tuple[int, ...] = ()
    process: int = 0
    segments: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)
    scans: list[Scan] = dataclasses.field(default_factory=list)
    exif: bytes = b""
    xmp: bytes = b""

    @property
    def buffered(self) -> bool:
        """Whether a decoder must hold every coefficient in memory, at whatever size it decodes."""
        return self.process in _PROGRESSIVE or len(self.scans[0].components) < len(self.components)

    def has_all(self, *, bits: bool) -> bool:
        """Whether each component is there: at least its means, or with `bits` every coefficient to its last bit."""
        if self.process not in _PROGRESSIVE:
            return set(self.components) <= {component for scan in self.scans for component in scan.components}
        missing = {(component, k) for component in self.components for k in range(64 if bits else 1)}
        for scan in self.scans:
            if not (bits and scan.low):
                missing -= {(component, k) for component in scan.components for k in range(scan.first, scan.last + 1)}
        return not missing

    def file(self, scans: int | None = None) -> bytes:
        """The file as a careful encoder would have written it, or its beginning with some scans only."""
        until = len(self.segments) if scans is None else self.scans[scans - 1].place + 2
        parts = [b"\xff\xd8"]
        for marker, body in self.segments[:until]:
            if marker == _APP14:  # how colours are coded; libjpeg takes a number that it does not know for the last
                known = (0, 2) if len(self.components) == 4 else (0, 1)
                body = body[:11] + bytes((body[11] if body[11] in known else known[1],))
            if marker != _CODED:
                parts.append(bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big"))
            parts.append(body)
        return b"".join((*parts, b"\xff\xd9"))


def read_jpeg(data: bytes, *, whole: bool = True) -> Jpeg:
    """Takes a JPEG apart, passing over what lies between its segments as libjpeg does.

    Args:
      data: a file that begins with a JPEG's first two bytes. What follows the picture's end is not looked at.
      whole: False to read up to the first scan only.

    Returns:
      Its segments.

    Raises:
      Damaged: it ends before its pixels, or its headers make no sense.
    """
    jpeg, place = Jpeg(), 2
    while (match := _MARKER.search(data, place)) is not None:
        marker, place = data[match.end() - 1], match.end()
        if marker in _BARE:
            continue
        if marker == _EOI or (marker == _SOI and jpeg.scans):  # another picture begins: the end is only not marked
            break
        length = int.from_bytes(data[place : place + 2], "big")
        body = data[place + 2 : place + length]
        if length < 2 or len(body) != length - 2:
            if jpeg.scans:  # cut off after a scan: whether pixels are lost follows from the scans
                break
            raise Damaged("its headers are cut off or make no sense")
        place += length
        if marker in _FRAMES:
            _read_frame(jpeg, marker, body)
        elif marker == _SOS:
            body = _read_scan(jpeg, body)
        elif marker == _APP1 and body.startswith(_EXIF):
            jpeg.exif = jpeg.exif or body
        elif marker == _APP1 and body.startswith(_XMP):
            jpeg.xmp = jpeg.xmp or body
        if marker in _KEPT or (marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12):
            jpeg.segments.append((marker, body))
        elif marker == _APP0 and body.startswith(b"JFIF\x00"):  # that it is there means YCbCr, whatever it says
            jpeg.segments.append((marker, _JFIF))
        if marker == _SOS:
            if not whole:
                break
            end = _END_OF_CODED.search(data, place)
            coded = data[place : end.start() if end else len(data)]
            jpeg.segments.append((_CODED, coded))
            place += len(coded)
    if not jpeg.scans:
        raise Damaged("it ends before its pixels begin")
    return jpeg


def _read_frame(jpeg: Jpeg, marker: int, body: bytes) -> None:
    if jpeg.components:
        raise Damaged("it has two frames")
    if len(body) < 9 or len(body) != 6 + 3 * body[5]:
        raise Damaged("its frame header makes no sense")
    jpeg.process, jpeg.components = marker, tuple(body[6::3])
    jpeg.height, jpeg.width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    if not jpeg.height or not jpeg.width:
        raise Damaged(f"it claims to have {jpeg.width}x{jpeg.height} pixels")


def _read_scan(jpeg: Jpeg, body: bytes) -> bytes:
    """Notes a scan; returns its header with the fields that a sequential JPEG must have."""
    if not jpeg.components:
        raise Damaged("its pixels come before its frame header")
    if len(body) < 6 or len(body) != 4 + 2 * body[0]:
        raise Damaged("a scan's header makes no sense")
    if len(jpeg.scans) == MAX_SCANS:
        raise Damaged(f"it has more than {MAX_SCANS} scans, which no picture needs")
    components, (first, last, bits) = tuple(body[1:-3:2]), body[-3:]
    jpeg.scans.append(Scan(components, first, min(last, 63), bits & 15, len(jpeg.segments)))
    return body[:-3] + b"\x00\x3f\x00" if jpeg.process in _SEQUENTIAL else body


def reduction(height: int, width: int, min_side: int) -> int:
    """By how much a JPEG can be decoded smaller: 8, 4, 2 or 1, with no side shorter than `min_side` (0: only 1)."""
    return next((n for n in (8, 4, 2) if min_side > 0 and min(-(-height // n), -(-width // n)) >= min_side), 1)


def decode_jpeg(data: bytes, jpeg: Jpeg, factor: int = 1) -> np.ndarray:
    """Decodes a JPEG with TensorFlow's settings, if no pixel is lost.

    Args:
      data: the file.
      jpeg: what `read_jpeg` made of it, at least up to the first scan.
      factor: 1, 2, 4 or 8: decode at 1/factor of the size, for a fraction of the time.

    Returns:
      uint8 [height, width, 3] of RGB; of a JPEG with four components [height, width, 4] of CMYK, 255 for full ink.

    Raises:
      Damaged: pixels are lost.
      Unsupported: simplejpeg does not decode this kind.
    """
    if jpeg.buffered:  # counts the scans before each passes over the whole image
        jpeg = read_jpeg(data)
        if not jpeg.has_all(bits=False):
            raise Damaged("a component of its colours is missing")
    try:
        return _decode_strictly(data, jpeg, factor)
    except ValueError as error:
        complaint = str(error)
    if any(words in complaint for words in _UNSUPPORTED):
        raise Unsupported(complaint)
    jpeg = read_jpeg(data)
    if not jpeg.has_all(bits=True):
        raise Damaged(complaint)
    for _ in range(len(jpeg.scans) + 1):
        try:
            return _decode_strictly(jpeg.file(), jpeg, factor)
        except ValueError as error:
            complaint = str(error)
            if not _cut_what_is_left_over(jpeg, complaint):
                break
    raise Damaged(complaint)


def _decode_strictly(data: bytes, jpeg: Jpeg, factor: int) -> np.ndarray:
    """Decodes; any complaint of libjpeg is a ValueError."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except KeyError:  # a subsampling that libjpeg-turbo has a number for and simplejpeg no name
        raise ValueError("unknown subsampling") from None
    if (height, width) != (jpeg.height, jpeg.width):  # by which the need for memory was judged
        raise ValueError(f"it claims both {width}x{height} and {jpeg.width}x{jpeg.height} pixels")
    inks = len(jpeg.components) == 4  # turned into RGB by Pillow, so decoded with Pillow's settings
    options = {"min_height": -(-height // factor), "min_width": -(-width // factor), "min_factor": 2.0}
    image = simplejpeg.decode_jpeg(
        data,
        colorspace="CMYK" if inks else "rgb",
        fastdct=FAST_DCT and not inks,
        fastupsample=False,
        **(options if factor > 1 else {}),
    )
    return 255 - image if inks else image  # Adobe writes inks inverted, and so does everybody


def _cut_what_is_left_over(jpeg: Jpeg, complaint: str) -> bool:
    """Where a scan's decoder came to its end before the data's, cuts the rest; False where that may be pixels."""
    if (left_over := _LEFT_OVER.search(complaint)) is None:
        return False
    for count, scan in enumerate(jpeg.scans, 1):
        if len(jpeg.scans) > 1:  # find the first that has something left over
            try:
                _decode_strictly(jpeg.file(count), jpeg, reduction(jpeg.height, jpeg.width, 1))
                continue
            except ValueError as error:
                if (left_over := _LEFT_OVER.search(str(error))) is None:
                    return False
        coded = jpeg.segments[scan.place + 1][1]
        rest = coded[max(0, len(coded) - int(left_over[1])) :]
        # Padding, or nothing beside what was decoded. More would mean that the decoder lost its way.
        if len(set(rest)) > 1 and len(rest) > max(16, len(coded) // 100):
            return False
        jpeg.segments[scan.place + 1] = (_CODED, coded[: len(coded) - len(rest)])
        return True
    return False
