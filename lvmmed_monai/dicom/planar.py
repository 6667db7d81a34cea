"""Images without a place in space: X-ray, ultrasound, photographs; single ones and clips.

What comes out is what a PNG can hold: grey of 8 or 16 bits with larger values brighter, or RGB of 8 bits. Values of
grey images stay exact, and no window is applied; an image whose values a PNG cannot hold is refused (R07).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import RLELossless

from lvmmed_monai.dicom.decoders import DECODERS, transfer_syntax
from lvmmed_monai.dicom.headers import Header, read_dataset
from lvmmed_monai.dicom.lookup_tables import LookupTable, modality_table, palette_tables
from lvmmed_monai.dicom.pixels import check_pixel_length
from lvmmed_monai.dicom.problems import DicomError, silent_pydicom

__all__ = [
    "CUT",
    "DECODERS",
    "MAX_FRAMES",
    "MAX_IMAGE_BYTES",
    "TURNED",
    "UNSCALED",
    "PlanarImage",
    "decode_planar",
]

MAX_IMAGE_BYTES = 1024**3
"""A picture or clip that takes more when decoded is refused (F06)."""
MAX_FRAMES = 10_000
"""A clip of more frames is refused (F06): each becomes a file, and tiny frames cost nothing to claim."""
TURNED = "turned"
"""Note: stored with small values bright (MONOCHROME1), and turned so that larger is brighter."""
UNSCALED = "unscaled"
"""Note: a rescaling to other than whole numbers from 0 to 65535 was left out; only their order counts in a picture."""
CUT = "cut"
"""Note: colours of more than 8 bits, of which the upper 8 were kept."""

_LARGEST = 65535
_Finish = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class PlanarImage:
    """A decoded picture or clip.

    Attributes:
        frames: (n, rows, columns) uint8 or uint16 grey, or (n, rows, columns, 3) uint8 RGB. Grey is uint8 where no
            stored value could exceed 255, whatever the values at hand, so that images of one device agree.
        spacing_mm: (between rows, between columns), or None where it is not known.
        decoder: what unpacked the pixels: one of `DECODERS`, or "native" where nothing was packed.
        notes: `TURNED`, `UNSCALED`, `CUT`.
    """

    frames: NDArray[Any]
    spacing_mm: tuple[float, float] | None
    decoder: str
    notes: tuple[str, ...]

    @property
    def colour(self) -> bool:
        """Whether the frames are RGB."""
        return self.frames.ndim == 4


@dataclass(frozen=True)
class _Greys:
    """From stored values to those of the picture, which lie between ``low`` and ``high``."""

    table: LookupTable | None
    slope: int
    intercept: int
    low: int
    high: int
    turned: bool

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        return np.uint8 if self.high <= np.iinfo(np.uint8).max else np.uint16

    def __call__(self, stored: NDArray[Any]) -> NDArray[Any]:
        values = stored if self.table is None else self.table.look_up(stored)
        if (self.slope, self.intercept) != (1, 0):
            values = values.astype(np.int64) * self.slope + self.intercept
        if self.turned:
            values = self.low + self.high - values.astype(np.int64)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > np.iinfo(self.dtype).max:
            raise _unfit(f"values from {low} to {high}")
        return values.astype(self.dtype)


def _unfit(measured: str) -> DicomError:
    return DicomError("R07", measured, f"grey values that are whole numbers from 0 to {_LARGEST}")


def _unknown_colours() -> DicomError:
    return DicomError("F05", "a colour space without a conversion", "grey, RGB, YBR or palette colours")


def _whole_rescaling(header: Header) -> tuple[int, int] | None:
    slope = 1.0 if header.slope is None else header.slope
    intercept = 0.0 if header.intercept is None else header.intercept
    if slope == 0:
        raise _unfit("a rescaling by 0")
    if not (slope.is_integer() and intercept.is_integer()) or max(abs(slope), abs(intercept)) > _LARGEST:
        return None
    return int(slope), int(intercept)


def _grey_ways(dataset: Dataset, header: Header) -> Iterator[tuple[_Greys, tuple[str, ...]]]:
    """Ways to grey values, the best one first; the first that a PNG can hold is taken.

    Values of a planar image are in no unit: that a rescaling is left out, or everything moved up, changes nothing
    that anybody sees.
    """
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation) == 1
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    turned = header.photometric == "MONOCHROME1"
    note = (TURNED,) if turned else ()
    table = modality_table(dataset)
    if table is not None:
        yield _Greys(table, 1, 0, 0, (1 << table.bits) - 1, turned), note
        return
    rescaling = _whole_rescaling(header)
    if rescaling is not None:
        slope, intercept = rescaling
        ends = sorted((low * slope + intercept, high * slope + intercept))
        yield _Greys(None, slope, intercept, ends[0], ends[1], turned), note
    falling = header.slope is not None and header.slope < 0
    yield _Greys(None, 1, 0, low, high, turned != falling), (UNSCALED, *note)
    yield _Greys(None, 1, -low, 0, high - low, turned != falling), (UNSCALED, *note)


def _ways(dataset: Dataset, header: Header) -> Iterator[tuple[_Finish, tuple[str, ...]]]:
    """What turns a decoded frame into one of the picture, and the notes about it; the first that fits is taken."""
    if int(dataset.SamplesPerPixel) == 3:
        shift = max(int(dataset.BitsStored) - 8, 0)
        yield (lambda frame: (frame >> shift).astype(np.uint8)), (CUT,) if shift else ()
    elif header.photometric == "PALETTE COLOR":
        tables = palette_tables(dataset)
        cut = any(table.bits > 8 for table in tables)
        yield (lambda frame: np.stack([table.upper_byte(frame) for table in tables], axis=-1)), (CUT,) if cut else ()
    elif header.photometric in ("MONOCHROME1", "MONOCHROME2"):
        yield from _grey_ways(dataset, header)
    else:
        raise _unknown_colours()


def _check_limits(dataset: Dataset) -> int:
    """The number of frames, if a clip of as many can be taken."""
    count = int(dataset.get("NumberOfFrames") or 1)
    if not 1 <= count <= MAX_FRAMES:
        raise DicomError("F06", f"{count} frames", f"1 to {MAX_FRAMES}")
    colour = int(dataset.SamplesPerPixel) == 3 or dataset.PhotometricInterpretation == "PALETTE COLOR"
    size = int(dataset.Rows) * int(dataset.Columns) * count * (3 if colour else 2)
    if size > MAX_IMAGE_BYTES:
        raise DicomError("F06", f"{size} bytes when decoded", f"at most {MAX_IMAGE_BYTES} bytes")
    return count


def _high_bit(dataset: Dataset) -> int:
    return int(dataset.get("HighBit", int(dataset.BitsStored) - 1))


def _lower_bits(frame: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """Stored values whose highest bit lies at HighBit: moved down, sign kept, bits on both sides cleared."""
    allocated, stored, high = 8 * frame.dtype.itemsize, int(dataset.BitsStored), _high_bit(dataset)
    if not stored <= high + 1 <= allocated:
        raise DicomError("F03", f"{stored} bits stored up to bit {high}", f"at most {allocated} bits")
    return (frame << (allocated - 1 - high)) >> (allocated - stored)


def _stored_frames(dataset: Dataset, count: int, plugin: str, **options: Any) -> Iterator[tuple[NDArray[Any], Any]]:
    """Each frame as stored (YBR as RGB), and what its values are now."""
    decoder = get_decoder(transfer_syntax(dataset))
    options["allow_excess_frames"] = False
    if decoder.is_native and int(dataset.BitsAllocated) == 1:
        # One by one, pydicom reads a byte too few for frames of packed bits that begin within a byte.
        frames, facts = decoder.as_array(dataset, **options)
        return ((frame, facts) for frame in frames.reshape(count, dataset.Rows, dataset.Columns))
    return islice(decoder.iter_array(dataset, decoding_plugin=plugin, **options), count)


def _decode(dataset: Dataset, count: int, finish: _Finish, plugin: str) -> NDArray[Any]:
    """All frames, one after the other, so that no more than one is held in another form."""
    syntax = transfer_syntax(dataset)
    # JPEG and its kin hold the values alone; only where the words themselves are stored can they lie elsewhere.
    words = get_decoder(syntax).is_native or syntax == RLELossless
    shifted = words and int(dataset.BitsAllocated) > 1 and _high_bit(dataset) + 1 != int(dataset.BitsStored)
    options = {"correct_unused_bits": False} if shifted else {}
    frames: NDArray[Any] | None = None
    found = 0
    for frame, facts in _stored_frames(dataset, count, plugin, **options):
        # The facts say what the frame holds now: some decoders give RGB for what is declared as YBR.
        if frame.ndim == 3 and facts["photometric_interpretation"] != "RGB":
            raise _unknown_colours()
        picture = finish(_lower_bits(frame, dataset) if shifted else frame)
        if frames is None:
            frames = np.empty((count, *picture.shape), picture.dtype)
        frames[found] = picture
        found += 1
    if frames is None or found < count:
        raise DicomError("F04", f"{found} frames", f"{count} frames")
    return frames


def _decode_by_any(dataset: Dataset, count: int, finish: _Finish) -> tuple[NDArray[Any], str]:
    """Frames, and the name of the first decoder that gave them."""
    decoder = get_decoder(transfer_syntax(dataset))
    if decoder.is_native:
        return _decode(dataset, count, finish, ""), "native"
    # Broken pixels make GDCM end the process that decodes them.
    known = [name for name in DECODERS if name in decoder.available_plugins and name != "gdcm"]
    if not known:
        raise DicomError("F05", "no decoder that is known here", f"one of {', '.join(DECODERS)}")
    for name in known:
        try:
            return _decode(dataset, count, finish, name), name
        except (DicomError, KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException:  # a panic of a decoder that is written in Rust is no Exception
            # Whatever made this decoder fail, the next one may succeed.
            continue
    raise DicomError("F04", f"not decoded by {', '.join(known)}", "whole pixel data")


def _first_that_fits(dataset: Dataset, header: Header, count: int) -> tuple[NDArray[Any], str, tuple[str, ...]]:
    """Frames, decoder and notes of the first way whose values a PNG can hold."""
    unfit = None
    for finish, notes in _ways(dataset, header):
        try:
            return *_decode_by_any(dataset, count, finish), notes
        except DicomError as error:
            if error.code != "R07":
                raise
            unfit = error
    raise unfit or _unfit("no way to a picture")


def decode_planar(data: bytes, header: Header) -> PlanarImage:
    """Decode a picture or clip.

    MONOCHROME1 is turned, YBR and palette colours become RGB, a modality table or rescaling to whole numbers is
    applied; windows never are. Bits outside those stored (old overlays) are cleared.

    Args:
        data: bytes of the instance.
        header: its header.

    Raises:
        DicomError: F01 to F03 see `read_dataset`; F04 pixels short, absent or broken; F05 no decoder, or a colour
            space that cannot be converted; F06 over a limit; R07 values that a PNG cannot hold exactly.
    """
    dataset = read_dataset(data, pixels=True)
    try:
        with silent_pydicom():
            check_pixel_length(dataset)
            count = _check_limits(dataset)
            frames, decoder, notes = _first_that_fits(dataset, header, count)
    except DicomError:
        raise
    except MemoryError:
        raise DicomError("F06", "decoding ended with MemoryError", "a picture that fits into memory") from None
    except Exception as error:
        # Decoders of several packages raise what they like on broken data; it costs this image and not the run.
        raise DicomError("F04", f"decoding ended with {type(error).__name__}", "whole pixel data") from None
    return PlanarImage(frames, header.planar_spacing, decoder, notes)
