"""The table of reason codes, in words: what each means, what was measured, and what to do.

A code never changes its meaning and is never used again for another.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FAMILIES", "REASONS", "Reason", "remedy"]


class Reason(NamedTuple):
    """What stands behind a code.

    Attributes:
        title: in a few words.
        meaning: what is the matter, and what becomes of the file, series or label.
        measured: which number is reported.
        remedy: what the user can do.
    """

    title: str
    meaning: str
    measured: str
    remedy: str


FAMILIES = {
    "F": "Files",
    "R": "Routes: what a series is",
    "S": "Series",
    "D": "Duplicates",
    "T": "Time points, echoes, b-values",
    "G": "Geometry",
    "W": "Warnings about positions and values",
    "M": "Masks",
    "P": "Privacy",
}
"""First letter of a code, and what it is about; in reading order."""

REASONS = {
    "F01": Reason(
        "Empty file",
        "The file holds no byte. It is passed over.",
        "size in bytes",
        "Copy the file again; ignore it if it is not an image.",
    ),
    "F02": Reason(
        "Not DICOM",
        "Neither the mark of a DICOM file nor a SOP class was found. The file is passed over.",
        "what the file lacks",
        "Nothing, if the file is not meant to be an image.",
    ),
    "F03": Reason(
        "Damaged or unreadable",
        "The file or archive cannot be opened, or its header ends early or contradicts itself. It is passed over.",
        "what could not be read",
        "Copy or export the file again.",
    ),
    "F04": Reason(
        "Pixels missing",
        "Fewer pixels are there than the header states, or none. The whole series is refused: it would lack a slice.",
        "bytes present and bytes needed",
        "Fetch this instance again from the archive.",
    ),
    "F05": Reason(
        "No decoder",
        "No decoder of this machine could decode the pixels. The whole series is refused: it would lack a slice.",
        "transfer syntax and the decoders tried",
        "Install a decoder for the transfer syntax, or let the archive transcode.",
    ),
    "F06": Reason(
        "Over a limit",
        "Reading would take more memory, time, nesting or space than is allowed, as with damaged or hostile files. "
        "It was stopped.",
        "the value that went over its limit",
        "Inspect the file; raise the limit only if you trust its source.",
    ),
    "F07": Reason(
        "Named but not there",
        "A file that the media directory (DICOMDIR) names is missing. The only series of its folder is refused (S03); "
        "where there are several, each is warned of.",
        "number of files that are missing",
        "Copy the whole medium again.",
    ),
    "F08": Reason(
        "Stopped by a mistake of this program",
        "Judging the file or series ended with an error that nobody foresaw. It is passed over, and the run goes on.",
        "kind of error, and where it came up",
        "Report it, with what is measured; leave the file out meanwhile.",
    ),
    "R01": Reason(
        "Localizer",
        "Scouts and pilots are for planning: their planes cross each other and make no volume.",
        "number of instances",
        "Choose another series of the study.",
    ),
    "R02": Reason(
        "Capture or report",
        "Secondary captures, screenshots, dose pages and structured reports hold no measured image.",
        "number of instances",
        "Choose the series that it was made from.",
    ),
    "R03": Reason(
        "Colour among slices",
        "Colour pixels are no measurement on a grid, so they never make a volume. A series of colour images alone "
        "goes the 2D way; among slices they are left out.",
        "number of instances",
        "Export them as a series of their own; they are then kept as 2D images.",
    ),
    "R04": Reason(
        "Mosaic",
        "A Siemens mosaic holds all slices of a volume as tiles of one image. It is never read as one large slice. "
        "Where dcm2niix is installed, it is converted, and its place in space is checked against the header.",
        "number of instances",
        "Install dcm2niix, or convert the series to NIfTI and describe it with a manifest.",
    ),
    "R05": Reason(
        "Not an image that is read",
        "The object is of a class that the ingest does not read (or it is a multi-frame object without the positions "
        "of its frames).",
        "number of instances",
        "Choose an image series of the study.",
    ),
    "R06": Reason(
        "Another modality",
        "The command asked for another modality.",
        "modality found",
        "Ingest without --modality.",
    ),
    "R07": Reason(
        "Values that a PNG cannot hold",
        "A planar image has negative or fractional values, or more than 16 bits. Rounding would change it: it is "
        "refused.",
        "smallest and largest value",
        "Export it as it was acquired, or as PNG, and describe that with a manifest.",
    ),
    "S01": Reason(
        "Several stacks in one series",
        "Image size, pixel type, frame of reference, echo, b-value, image component, or whether a rescaling is stated, "
        "differ between the slices of one series or volume. Which are meant, nothing says: it is refused.",
        "number of stacks and their sizes, or what differs",
        "Export each stack as a series of its own.",
    ),
    "S02": Reason(
        "Images of another series would fill the gap",
        "Slices are missing here, and images of another series of the study lie exactly there. Series are never joined "
        "unasked.",
        "number of images that would fit",
        "Ask the source whether they are one series; if so, join them there and ingest again.",
    ),
    "S03": Reason(
        "Fewer instances than expected",
        "The archive's count, the range of InstanceNumber or broken files in the same folder say that instances are "
        "missing. In a folder this is the only sign of a stack cut off at an end. Where it is certain, the series "
        "is refused.",
        "instances present and instances expected",
        "Compare with the count in the archive and fetch the series again.",
    ),
    "D01": Reason(
        "Exact copies",
        "The same instance was there more than once, with the same pixels. One is kept.",
        "number of copies dropped",
        "None.",
    ),
    "D02": Reason(
        "One UID, different pixels",
        "One SOPInstanceUID stands for different images, so nothing says which is right. The series is refused.",
        "number of such UIDs",
        "Ask the source which version is right and remove the other.",
    ),
    "D03": Reason(
        "Copies under another UID",
        "The same pixels lie at the same position under another SOPInstanceUID. One is kept.",
        "number of copies dropped",
        "None.",
    ),
    "D04": Reason(
        "Different images at one position",
        "Some positions hold several images, and nothing tells them apart as complete volumes. The series is refused.",
        "number of images and of such positions",
        "Ask the source which images belong to the volume.",
    ),
    "T01": Reason(
        "Several volumes in one series",
        "Every position is there equally often: time points, echoes, b-values or image components. Each becomes a "
        "volume of its own. A warning says that only the numbering of the images tells them apart.",
        "number of volumes, and slices in each",
        "Choose the volumes that you need; after a warning, look at the previews.",
    ),
    "T02": Reason(
        "Incomplete time point",
        "The series holds several volumes, and some lack slices. These are left out; the whole ones are kept.",
        "slices of the volumes left out",
        "Fetch the series again.",
    ),
    "G01": Reason(
        "Gap",
        "Slices are missing inside the stack: some steps are whole multiples of the usual one. The series is refused.",
        "number of missing slices, and where",
        "Fetch the series again.",
    ),
    "G02": Reason(
        "Irregular steps",
        "The distances between slices differ, or slices leave the straight line. The series is refused.",
        "the steps in mm",
        "Choose another reconstruction of the study.",
    ),
    "G03": Reason(
        "Tilted gantry",
        "Slices are stacked at an angle to their normal; as a plain stack the volume would be sheared. Each slice is "
        "shifted in its plane onto an orthogonal grid; with --strict, or beyond 45 degrees, the series is refused.",
        "angle in degrees, from the positions",
        "None; where it was refused, choose another series of the study.",
    ),
    "G04": Reason(
        "No place in space",
        "Position or orientation are absent or invalid, as in planar images (CR, DX, MG, ultrasound). Never a volume.",
        "number of instances without them",
        "Export the original series; planar images can be used as 2D images.",
    ),
    "G05": Reason(
        "No pixel spacing",
        "The size of a pixel is not stated. It is never guessed: the series is refused.",
        "number of instances without it",
        "Export the original series.",
    ),
    "G06": Reason(
        "Mixed planes",
        "Orientation or pixel spacing change inside the series. It is refused.",
        "largest angle in degrees, largest difference of spacing in percent",
        "Export each orientation as a series of its own.",
    ),
    "G07": Reason(
        "Too few slices",
        "Two slices cannot show whether steps are even, and slices at one position are no volume. The series is "
        "refused. Two are enough where further volumes of the series lie at the same places.",
        "number of slices",
        "Choose another series, or fetch this one again.",
    ),
    "G08": Reason(
        "No frame of reference",
        "Nothing says that this series shares a space with another. It is used.",
        "absence of FrameOfReferenceUID",
        "Check by eye that labels and results lie on the images.",
    ),
    "W01": Reason(
        "Declared spacing is wrong",
        "SpacingBetweenSlices or SliceThickness disagree with the positions. Positions win.",
        "declared distance and distance by the positions, mm",
        "None.",
    ),
    "W02": Reason(
        "Numbers do not follow positions",
        "InstanceNumber is not in the order of the positions. Positions win.",
        "whether the numbers ascend or descend",
        "None.",
    ),
    "W03": Reason(
        "Rescaling unusual",
        "Slices have different slopes, as is usual in PET (each was rescaled with its own); a CT or PET states no "
        "rescaling; or that of a planar image gives no whole numbers and was left out.",
        "smallest and largest slope, or what is missing",
        "Look at the values before you trust a window or a threshold.",
    ),
    "W04": Reason(
        "Positions jitter",
        "Steps are even enough to be used, but not quite even.",
        "largest difference of a step, mm",
        "Look at the preview.",
    ),
    "W05": Reason(
        "Unusual values",
        "CT without air, slices of one value, many saturated voxels, or an image that was stored inverted.",
        "the value or share",
        "Look at the preview.",
    ),
    "M01": Reason(
        "Another frame of reference",
        "Label and images declare different spaces. The label is not used.",
        "that the two differ",
        "Check that label and images belong together.",
    ),
    "M02": Reason(
        "Images missing",
        "The images that the label was drawn on are not here or were refused, or its frames lie on none of them.",
        "what the label names and what was found",
        "Export the images that the label was drawn on together with it.",
    ),
    "M03": Reason(
        "Contours off the slices",
        "Contours lie farther than half a step from every slice. They are left out; if there are too many, the label "
        "is not used.",
        "number of contours",
        "Export the images that the contours were drawn on together with them.",
    ),
    "M04": Reason(
        "Open contours",
        "A contour is a point or an open line and encloses nothing. It is left out.",
        "number of contours",
        "Close the contours where they were drawn, if they are meant to be areas.",
    ),
    "M05": Reason(
        "Overlapping labels",
        "Structures share voxels, which one label map cannot hold. They are kept as channels, one for each label.",
        "number of voxels shared",
        "Train with one channel for each label, or name only labels that do not overlap with --labels.",
    ),
    "M06": Reason(
        "Not in the label table",
        "Segments whose name the file of --labels does not hold were left out.",
        "number of segments left out",
        "Add their names to the file of --labels.",
    ),
    "M07": Reason(
        "Structure on some slices only",
        "A structure is drawn on every second slice or fewer. Between them it would be taught as background: the label "
        "is not used.",
        "number of structures, and the usual step between drawn slices",
        "Interpolate the contours where they were drawn, or leave the structure out with --labels.",
    ),
    "P01": Reason(
        "Text in the pixels",
        "Text burned into the pixels may name the patient. Where the header says that it is there, or does not deny it "
        "in ultrasound, endoscopy and photographs, the series is refused; X-ray images that do not deny it are used.",
        "number of instances, and what points to text",
        "Remove the text at the source, or accept it with --keep-burned-in; look at the preview before sharing.",
    ),
    "P02": Reason(
        "Private data kept",
        "Something that the de-identification does not know was kept in an exported object.",
        "number of elements",
        "Keep the export inside, or remove the elements.",
    ),
    "P03": Reason(
        "May show a face",
        "The header speaks of the head, and from a volume of the head the person may be recognised. It is used.",
        "number of instances",
        "Remove the face, or have an agreement, before the volume leaves the site.",
    ),
    "P04": Reason(
        "Cannot be de-identified",
        "The object cannot be named by pseudonyms, or its pixels cannot be written without what may hide in them. It "
        "is not exported.",
        "what stands in the way",
        "Keep it inside.",
    ),
}
"""All codes, by family and number."""


def remedy(code: str) -> str:
    """What to do about a code, as it stands in a finding: a clause without capital and full stop."""
    text = REASONS[code].remedy.rstrip(".")
    return text[0].lower() + text[1:]
