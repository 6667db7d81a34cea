"""One small series, mutated thousands of times: no crash, no hang, no wrong volume.

Run as a script in a process with limits (see `run`): it reads the files of a folder, mutates the bytes of one of them
at a time, reads all of them with `read_volumes`, and prints what went wrong as JSON.

When is an accepted volume wrong? Every slice of it names its file. The corners of the slice must lie where the header
of the file puts them, and the values must be those of the file: as it was, or, where the mutated file is still readable
by pydicom, as it says now. So a change of stored pixels, of a rescale slope, or an exchange of the positions of two
slices is no error of the reader: no reader can tell. A slice may be out of place by what the checks tolerate. All
slices must be there; only one at an end may be left out, since nothing shows that a stack was longer.
"""

from __future__ import annotations

import io
import json
import resource
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

sys.path.insert(0, str(Path(__file__).resolve().parent))
from world import Plane, displacement, planes_of

HANG_SECONDS = 10
MEMORY_LIMIT = 6 * 1024**3
"""Address space of the process, bytes."""
ORIENTATION_TOLERANCE = np.radians(0.3)
STEP_TOLERANCE = 0.15
"""Of a step, beside 0.1 mm: single steps may differ by 5 %, and the line through all slices by 10 %."""

_LONG = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}
_VRS = [b"UN", b"OB", b"DS", b"US", b"SQ", b"FD", b"XX", b"\0\0", b"AT", b"UI"]
_SYNTAXES = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
             "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80",
             "1.2.3", ""]  # fmt: skip
_KEYWORDS = """
    ImagePositionPatient ImageOrientationPatient PixelSpacing Rows Columns RescaleSlope RescaleIntercept BitsAllocated
    BitsStored HighBit PixelRepresentation SamplesPerPixel PhotometricInterpretation SeriesInstanceUID SOPInstanceUID
    SOPClassUID StudyInstanceUID FrameOfReferenceUID InstanceNumber ImageType Modality PatientID SliceThickness
    AcquisitionNumber PixelPaddingValue
""".split()  # noqa: SIM905
# fmt: off
_VALUES = [
    b"", b"0", b"-1", b"NaN", b"inf", b"1e308", b"1e-308", b"65535", b"99999999999999999999", b"abc", b"-0.5",
    b"1,5", b" ", b"\\\\", b"1\\1", b"0\\0", b"1\\2\\3", b"1\\0\\0\\0\\1\\0", b"0\\0\\0\\0\\0\\0", b"nan\\nan\\nan",
    b"1e999\\0\\0", b"\xff\xff", b"\x00\x00", b"\x01\x00", b"\x10\x00", b"1.2.3", b"1.2.840.10008.5.1.4.1.1.66.4",
    b"MONOCHROME1", b"LOCALIZER", b"RGB",
]
# fmt: on

Files = dict[str, bytes]


# -- mutations: bytes of one file in, bytes out ------------------------------------------------------------------------


def _elements(data: bytes) -> list[Any]:
    dataset = pydicom.dcmread(io.BytesIO(data))
    raw = [dataset.get_item(tag) for tag in dataset.keys()]  # noqa: SIM118 - tags without parsing the values
    return [element for element in raw if getattr(element, "value_tell", 0)]


def _length_field(element: Any) -> tuple[int, int]:
    """Where the length of an element stands, and in how many bytes."""
    wide = element.is_implicit_VR or element.VR in _LONG
    return element.value_tell - (4 if wide else 2), 4 if wide else 2


def _new_value(data: bytes, keyword: str, value: bytes) -> bytes:
    tag = pydicom.tag.Tag(keyword)
    for element in _elements(data):
        if element.tag == tag:
            field, size = _length_field(element)
            padded = value + b" " * (len(value) % 2)
            end = element.value_tell + element.length
            return data[:field] + len(padded).to_bytes(size, "little") + padded + data[end:]
    return data


def flip_bits(data: bytes, rng: np.random.Generator, clean: Files) -> bytes:
    changed = bytearray(data)
    end = len(data) if rng.random() < 0.5 else min(len(data), _elements(data)[-1].value_tell)
    for place in rng.integers(0, end, rng.integers(1, 17)):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def truncate(data: bytes, rng: np.random.Generator, clean: Files) -> bytes:
    return data[: int(rng.integers(0, len(data)))]


def insert_bytes(data: bytes, rng: np.random.Generator, clean: Files) -> bytes:
    place = int(rng.integers(0, len(data)))
    return data[:place] + rng.bytes(int(rng.integers(1, 65))) + data[place:]


def delete_bytes(data: bytes, rng: np.random.Generator, clean: Files) -> bytes:
    place = int(rng.integers(0, len(data)))
    return data[:place] + data[place + int(rng.integers(1, 65)) :]


def overwrite(data: bytes, rng: np.random.Generator, clean: Files) -> bytes:
    place, count = int(rng.integers(0, len(data))), int(rng.integers(1, 33))
    filling = [b"\0" * count, b"\xff" * count, rng.bytes(count)][int(rng.integers(3))]
    return data[:place] + filling + data[place + count :]


def wrong_length(data: bytes, rng: np.random.Generator, clean: Files) -> bytes:
    elements = _elements(data)
    field, size = _length_field(elements[int(rng.integers(len(elements)))])
    top = 1 << (8 * size)
    lengths = [0, 1, 2, int(rng.integers(0, 300)), top // 2, top - 2, top - 1]
    length = lengths[int(rng.integers(len(lengths)))]
    return data[:field] + length.to_bytes(size, "little") + data[field + size :]


def replace_value(data: bytes, rng: np.random.Generator, clean: Files) -> bytes:
    return _new_value(data, _KEYWORDS[int(rng.integers(len(_KEYWORDS)))], _VALUES[int(rng.integers(len(_VALUES)))])


def nudge_geometry(data: bytes, rng: np.random.Generator, clean: Files) -> bytes:
    """Position, orientation or spacing changed by a little or by much: single slices out of line must be seen."""
    keyword = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")[int(rng.integers(3))]
    value = np.array(pydicom.dcmread(io.BytesIO(data))[keyword].value, dtype=float)
    value[int(rng.integers(len(value)))] += rng.choice([-1, 1]) * 10.0 ** rng.uniform(-4, 3)
    return _new_value(data, keyword, "\\".join(f"{number:.9g}" for number in value).encode())


def other_vr(data: bytes, rng: np.random.Generator, clean: Files) -> bytes:
    elements = [element for element in _elements(data) if not element.is_implicit_VR]
    if not elements:
        return flip_bits(data, rng, clean)
    field, size = _length_field(elements[int(rng.integers(len(elements)))])
    place = field - (4 if size == 4 else 2)
    return data[:place] + _VRS[int(rng.integers(len(_VRS)))] + data[place + 2 :]


def other_syntax(data: bytes, rng: np.random.Generator, clean: Files) -> bytes:
    uid = str(pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True).file_meta.TransferSyntaxUID).encode()
    place = data.index(b"\x02\x00\x10\x00UI") + 8
    end = place + len(uid) + len(uid) % 2
    new = _SYNTAXES[int(rng.integers(len(_SYNTAXES)))].encode()
    new += b"\0" * (len(new) % 2)
    return data[: place - 2] + len(new).to_bytes(2, "little") + new + data[end:]


def value_of_another(data: bytes, rng: np.random.Generator, clean: Files) -> bytes:
    """A value that belongs to another slice: positions, UIDs and pixels of two slices exchanged or doubled."""
    other = pydicom.dcmread(io.BytesIO(list(clean.values())[int(rng.integers(len(clean)))]))
    keyword = ("ImagePositionPatient", "SOPInstanceUID", "InstanceNumber", "PixelData")[int(rng.integers(4))]
    value = other.get_item(keyword).value
    return _new_value(data, keyword, value if isinstance(value, bytes) else bytes(str(value), "ascii"))


MUTATIONS: list[Callable[[bytes, np.random.Generator, Files], bytes]] = [
    flip_bits,
    truncate,
    insert_bytes,
    delete_bytes,
    overwrite,
    wrong_length,
    replace_value,
    replace_value,
    nudge_geometry,
    nudge_geometry,
    other_vr,
    other_syntax,
    value_of_another,
]


# -- judging -----------------------------------------------------------------------------------------------------------


def _plane(data: bytes) -> Plane | None:
    """What pydicom makes of a file, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (plane,) = planes_of(pydicom.dcmread(io.BytesIO(data), force=True))
        return plane
    except (KeyboardInterrupt, SystemExit, TimeoutError):
        raise
    except BaseException:  # a broken file has no plane, whatever the parser or a decoder raises
        return None


def _same(values: np.ndarray, affine: np.ndarray, k: int, plane: Plane, tolerance_mm: float) -> bool:
    """Whether slice k, values (columns, rows), holds a plane, and its corners lie where the plane's do."""
    if values.T.shape != plane.values.shape:
        return False
    rows, columns = (np.array(axis) for axis in zip(*np.ndindex(2, 2), strict=True))
    rows, columns = rows * (plane.values.shape[0] - 1), columns * (plane.values.shape[1] - 1)
    index = np.stack([columns, rows, np.full(4, k), np.ones(4)])
    lps = (affine @ index)[:3].T * (-1.0, -1.0, 1.0)
    if np.linalg.norm(lps - plane.place(rows, columns), axis=1).max() > tolerance_mm:
        return False
    with np.errstate(over="ignore"):
        expected = plane.values.astype(np.float32)
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    return bool(np.allclose(values.T.astype(np.float32), expected, rtol=1e-4, atol=1e-5 * scale, equal_nan=True))


def problem(volumes: list[Any], clean: dict[str, Plane], order: list[str], name: str, data: bytes) -> str:
    """What is wrong about the volumes read after the file ``name`` became ``data``; "" if nothing is.

    Args:
        volumes: what was accepted.
        clean: the slices as they were.
        order: file names in the order of the slices.
        name: of the mutated file.
        data: its bytes.
    """
    if len(volumes) != 1:
        return f"{len(volumes)} volumes"
    (volume,) = volumes
    names = [Path(source.path).name for source in volume.instances]
    missing = set(order) - set(names)
    an_end = missing == {name} and name in (order[0], order[-1])
    if len(set(names)) != len(names) or (missing and not an_end):
        return f"{len(names)} slices of {len(order)}"
    first, second = clean[order[0]], clean[order[1]]
    size = np.linalg.norm(first.place(*(np.array([n]) for n in first.values.shape)) - first.origin)
    step = np.linalg.norm(second.origin - first.origin)
    tolerance = 0.1 + STEP_TOLERANCE * step + ORIENTATION_TOLERANCE * size
    if any(finding.code == "G03" for finding in volume.findings):
        now = [(_plane(data) if file == name else None) or clean[file] for file in names]
        return "" if displacement((volume.array, volume.affine), now).shift_mm < tolerance else "straightened wrongly"
    for k, file in enumerate(names):
        planes = [clean[file]]
        changed = _plane(data) if file == name else None
        planes += [changed] if changed is not None else []
        if not any(_same(volume.array[:, :, k], volume.affine, k, plane, tolerance) for plane in planes):
            return f"slice {k} of {len(names)} ({'the' if file == name else 'not the'} mutated one) differs"
    return ""


# -- the process -------------------------------------------------------------------------------------------------------


def _hang(*_: object) -> None:
    raise TimeoutError


def fuzz(folder: Path, scratch: Path, count: int, seed: int) -> dict[str, Any]:
    """Mutate and read ``count`` times.

    Returns:
        ``failures`` [(number, mutation, what)], counts of ``accepted``, ``refused`` codes and ``unchanged`` files.
    """
    from lvmmed_monai.errors import UserError
    from lvmmed_monai.ingest import read_volumes

    clean = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    for name, data in clean.items():
        (scratch / name).write_bytes(data)
    paths = [scratch / name for name in clean]
    planes = {name: plane for name, data in clean.items() if (plane := _plane(data)) is not None}
    (good,) = read_volumes(paths)
    order = [Path(source.path).name for source in good.instances]
    assert not problem([good], planes, order, order[0], clean[order[0]])
    signal.signal(signal.SIGALRM, _hang)
    failures: list[tuple[int, str, str]] = []
    outcomes: Counter[str] = Counter()
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        mutate = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
        name = order[int(rng.integers(len(order)))]
        data = mutate(clean[name], rng, clean)
        outcomes["unchanged"] += data == clean[name]
        (scratch / name).write_bytes(data)
        signal.alarm(HANG_SECONDS)
        try:
            wrong = problem(read_volumes(paths), planes, order, name, data)
            outcomes["accepted"] += 1
        except UserError as error:
            codes = {finding.code for finding in getattr(error, "findings", ()) if finding.severity == "error"}
            outcomes.update([f"refused {code}" for code in sorted(codes) or ["without a code"]])
            unforeseen = [f.measured for f in getattr(error, "findings", ()) if f.code == "F08"]
            wrong = f"F08: {unforeseen[0]}" if unforeseen else "" if codes else "refused without a code"
        except TimeoutError:
            wrong = f"no answer in {HANG_SECONDS} s"
        except BaseException as error:  # what must not happen is counted; a decoder's panic is no Exception
            wrong = f"{type(error).__name__} came through"
        signal.alarm(0)
        if wrong:
            failures.append((number, mutate.__name__, wrong))
        (scratch / name).write_bytes(clean[name])
    return {"failures": failures, "outcomes": dict(outcomes)}


def run(folder: Path, scratch: Path, count: int, seed: int = 0, seconds: float = 300.0) -> dict[str, Any]:
    """`fuzz` in a process of limited memory; a crash of it is an error here.

    Returns:
        What `fuzz` returns, and ``peak_mib``, the largest memory of the process.
    """
    scratch.mkdir()
    command = [sys.executable, __file__, str(folder), str(scratch), str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run in a process of its own."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    folder, scratch, count, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    found = fuzz(folder, scratch, count, seed)
    # The kernel's own line: what getrusage says counts the process that started this one, too.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(json.dumps({**found, "peak_mib": peak}))


if __name__ == "__main__":
    main()
