"""DICOM SEG: a mask that refers, slice by slice, to the series it was made from."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..rule import UInt8Array
from ..seal import BLANK
from .base import Refused, Volume, optional

SUFFIXES = (".dcm",)
# What a segmentation takes over from its source, and the standard allows to be empty
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName"),
)
_GROUPS = (0x08, 0x10, 0x12, 0x18, 0x20, 0x32, 0x40)  # of elements that say who, when and with what
_LOSSY = (0x00282110, 0x00282112, 0x00282114)  # whether, by how much and how the source was compressed with losses
_SLIDE = ("ImageCenterPointCoordinatesSequence", "ContainerTypeCodeSequence")  # a series is none
_REFERRED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_ANY_IMAGE = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture
_NOT_TAKEN = (*_REFERRED, *_SLIDE, "SpecificCharacterSet", "FrameOfReferenceUID", "ImagePositionPatient")
_NO_DATE, _NO_TIME = "19000101", "000000"
_SERIES, _MOST = 1000, 2**31 - 1  # above the numbers of a scanner; the largest number of a series
_LONGEST, _LONGEST_MODALITY = 64, 12  # characters of a name or a UID; of what gets "_SEG" behind it
_DIGITS = 16  # characters of a decimal number
_THICKEST = 1e4  # mm, of a slice
_DEEPEST = 8  # sequences in sequences: what describes a patient has no more
_TRIED = 16  # slices, before the work
_UTF8 = "ISO_IR 192"
_TEXTS = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")
_ONE_LINE = ("LO", "PN", "SH", "UC")


def check(like: Volume) -> None:
    """Refuse a series that no segmentation can refer to.

    A segmentation of a single pixel a slice is made, so that whatever there is to refuse is found before the work.
    Slices differ in their UIDs and places, which `_sources` looks at, so that a few of many are enough.
    """
    sources = _sources(like)
    sources = sources[:: -(-len(sources) // _TRIED)]
    for source in sources:
        source.Rows = source.Columns = 1
    frames = np.zeros((len(sources), 1, 1), np.uint8)
    with _quiet():
        _encoded(frames, sources, {1: "check"}, like)


def write(path: Path, mask: UInt8Array, like: Volume, labels: Mapping[int, str]) -> None:
    """Write a mask (column, row, slice) as a binary segmentation: one segment a label, one frame a slice.

    Segments are numbered from 1 in the order of label values, as the standard wants. Nothing in the file depends
    on when or how often it is written. Its seal is in the preamble, which the standard leaves to applications.
    """
    sources = _sources(like)
    frames = np.zeros((mask.shape[2], mask.shape[1], mask.shape[0]), np.uint8)
    for number, value in enumerate(sorted(labels), start=1):
        frames[mask.transpose(2, 1, 0) == value] = number
    with _quiet():
        content = _encoded(frames, sources, labels, like)
    path.write_bytes(content)


def _encoded(frames: UInt8Array, sources: Sequence[Any], labels: Mapping[int, str], like: Volume) -> bytes:
    """Return the bytes of a segmentation."""
    import hashlib  # here: it brings OpenSSL, which takes 3 ms

    seg = optional("highdicom.seg", "dicom", "DICOM SEG")
    first = sources[0]
    digest = hashlib.sha256(frames.tobytes())
    for text in (*(source.SOPInstanceUID for source in sources), *(labels[value] for value in sorted(labels))):
        digest.update(f"\0{text}".encode(errors="surrogatepass"))
    number = _SERIES + int(first.get("SeriesNumber") or 0)

    def made() -> Any:
        return seg.Segmentation(
            source_images=sources,
            pixel_array=frames,
            segmentation_type="BINARY",
            segment_descriptions=[_segment(n, labels[v]) for n, v in enumerate(sorted(labels), start=1)],
            series_instance_uid=_uid(digest, "series"),
            sop_instance_uid=_uid(digest, "instance"),
            series_number=number if 0 < number <= _MOST else _SERIES,
            instance_number=1,
            manufacturer="pynca",
            manufacturer_model_name="pynca",
            software_versions=_version(),
            device_serial_number="none",
            omit_empty_frames=False,
            series_description=f"Segmentation by pynca of {first.get('SeriesDescription', 'a series')}"[:_LONGEST],
        )

    try:
        try:
            content = made()
        except KeyError:  # highdicom does not know a scanner maker's own class
            classes = {source.SOPInstanceUID: source.SOPClassUID for source in sources}
            for source in sources:
                source.SOPClassUID = _ANY_IMAGE
            content = made()
            content.walk(lambda item, element: _restore_class(item, element, classes))
        content.SpecificCharacterSet = _UTF8  # whatever the source has
        content.ContentDate = first.get("StudyDate") or _NO_DATE
        content.ContentTime = first.get("StudyTime") or _NO_TIME
        _make_repeatable(content, digest)
        stream = io.BytesIO()
        content.preamble = BLANK.ljust(128, b"\0")
        content.save_as(stream)
    except (MemoryError, ImportError):
        raise
    except Exception as problem:  # a source can break the standard in any way
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise Refused(f"lacks what DICOM SEG needs: {reason[:200]}") from problem
    return stream.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom and highdicom from telling what the source breaks in the standard."""
    logger = logging.getLogger("highdicom")
    if not logger.handlers:  # else Python's own prints on standard error
        logger.addHandler(logging.NullHandler())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _restore_class(item: Any, element: Any, classes: Mapping[str, str]) -> None:
    if element.keyword == "ReferencedSOPClassUID":
        element.value = classes.get(item.get("ReferencedSOPInstanceUID"), element.value)


def _make_repeatable(content: Any, digest: Any) -> None:
    """Take out when it was made, and what is random."""
    del content.InstanceCreationDate, content.InstanceCreationTime
    for item in content.get("ContributingEquipmentSequence", ()):
        item.pop("ContributionDateTime", None)
    for number, item in enumerate(content.DimensionOrganizationSequence):
        _replace(content, item.DimensionOrganizationUID, _uid(digest, f"dimensions {number}"))


# --- what is taken over from the source ---------------------------------------------------------------------


def _sources(like: Volume) -> list[Any]:
    """Return headers of the slices with what a segmentation takes over, each value as the standard wants it."""
    with _quiet():
        first = _described(like)
        sources = [first]
        for header in like.slices[1:]:
            source = type(first)()
            source.update(first)  # what describes the series need not be checked again
            _refer(source, header)
            sources.append(source)
        _refer(first, like.slices[0])
    for source, header in zip(sources, like.slices, strict=True):
        source.ImagePositionPatient = _decimals(header, "ImagePositionPatient")
    return sources


def _refer(source: Any, header: Any) -> None:
    """Give a source the UIDs that the segmentation refers to: as they stand, since others would find nothing."""
    for keyword in _REFERRED:
        text = _one_uid(header, keyword)
        if not text:
            raise Refused(f"lacks what DICOM SEG needs: a slice has no {keyword} that could be referred to")
        if keyword in ("SeriesInstanceUID", "StudyInstanceUID") and source.get(keyword, text) != text:
            raise Refused(f"lacks what DICOM SEG needs: its slices have more than one {keyword}")
        setattr(source, keyword, text)


def _described(like: Volume) -> Any:
    """Return what the first header says of patient, study and place, without what breaks the standard."""
    assert like.affine is not None
    header = like.slices[0]
    source = optional("pydicom", "dicom", "DICOM").Dataset()
    source.SpecificCharacterSet = _UTF8
    for tag in header.keys():  # noqa: SIM118 - a Dataset iterates over elements
        if tag.group in _GROUPS or tag in _LOSSY:
            element = _valid(header, tag)
            if element is not None and element.keyword not in _NOT_TAKEN:
                source.add(element)
    for keyword in _MAY_BE_EMPTY:
        if keyword not in source:
            setattr(source, keyword, None)
    source.PatientSex = source.PatientSex if source.PatientSex in ("M", "F", "O") else None
    modality = source.get("Modality") or ""
    source.Modality = modality if modality[:1].isalpha() and len(modality) <= _LONGEST_MODALITY else "OT"
    frames = {_one_uid(each, "FrameOfReferenceUID") for each in like.slices}
    source.FrameOfReferenceUID = _own_frame(header) if len(frames) > 1 or "" in frames else frames.pop()
    source.Rows, source.Columns = like.data.shape[1], like.data.shape[0]
    for keyword in ("ImageOrientationPatient", "PixelSpacing"):  # of all: they differ by rounding at most
        setattr(source, keyword, _decimals(header, keyword))
    _complete_thickness(source, like)
    return source


def _one_uid(header: Any, keyword: str) -> str:
    """Return a UID as it stands, even one that breaks the standard; an empty text where nothing can refer to it."""
    value = header.get(keyword)
    fits = isinstance(value, str) and len(value) <= _LONGEST and value.isascii() and value.isprintable()
    return str(value) if fits else ""


def _decimals(header: Any, keyword: str) -> list[Any]:
    """Return numbers in the characters that DICOM has for one; those that fit stay as they are written."""
    return [_decimal(value) for value in header.get(keyword)]


def _complete_thickness(source: Any, like: Volume) -> None:
    """Let slices be as thick as they are far apart where the header does not say it, or cannot be right."""
    assert like.affine is not None
    axes = like.affine[:3, :3]
    step = float(np.linalg.norm(axes[:, 2]))
    apart = float(abs(np.linalg.det(axes)) / np.linalg.norm(axes[:, 0]) / np.linalg.norm(axes[:, 1]))
    if not 0 < (source.get("SliceThickness") or 0) <= _THICKEST or like.flat:
        source.SliceThickness = None if like.flat else _decimal(apart)
    between = source.get("SpacingBetweenSlices") or 0
    alike = np.isclose(between, (apart, step), rtol=0.1).any()
    if "SpacingBetweenSlices" in source and not (alike or (0 < between <= _THICKEST and len(like.slices) == 1)):
        del source.SpacingBetweenSlices  # highdicom tells it from the positions


def _decimal(value: Any) -> Any:
    decimal = optional("pydicom.valuerep", "dicom", "DICOM").DSfloat
    return decimal(value if isinstance(value, decimal) else float(value), auto_format=True)


def _valid(header: Any, tag: Any) -> Any:
    """Return an element as the standard wants it; None where it cannot be."""
    try:
        element = _cleaned(header[tag])
        alone = optional("pydicom", "dicom", "DICOM").Dataset()
        alone.SpecificCharacterSet = _UTF8
        alone.add(element)
        alone.save_as(io.BytesIO(), implicit_vr=False, little_endian=True)
    except Exception:  # pydicom converts and checks in as many ways as there are types
        return None
    return element


def _cleaned(element: Any, depth: int = 0) -> Any:
    """Return an element with values that the standard allows, or raise whatever pydicom raises of them."""
    pydicom = optional("pydicom", "dicom", "DICOM")
    if element.VR == "SQ":
        if depth > _DEEPEST:
            raise ValueError("has sequences in sequences")
        items = []
        for item in element.value:
            items.append(pydicom.Dataset())
            for inner in item:
                items[-1].add(_cleaned(inner, depth + 1))
        return pydicom.DataElement(element.tag, "SQ", items)
    if element.VM > 1 and pydicom.datadict.dictionary_VM(element.tag) == "1":
        raise ValueError("has several values")
    values = list(element.value) if element.VM > 1 else [] if element.is_empty else [element.value]
    cleaned = [_allowed(element.VR, value) for value in values]
    if element.VR != "PN" and cleaned == values:
        return copy.copy(element)  # with its numbers as they were written
    return pydicom.DataElement(
        element.tag, element.VR, cleaned if len(cleaned) > 1 else cleaned[0] if cleaned else None
    )


def _allowed(vr: str, value: Any) -> Any:
    """Return a value as its type allows it, or raise."""
    pydicom = optional("pydicom", "dicom", "DICOM")
    if vr in _TEXTS:
        value = _printable(str(value), "" if vr in _ONE_LINE else "\t\n\f\r")
    elif vr == "CS":
        value = str(value).strip().upper()
    elif vr == "DA":  # older ones are written as 1970.01.01
        value = str(value).replace(".", "")
    if vr in ("DA", "DT", "TM") and value:
        getattr(pydicom.valuerep, vr)(str(value))  # whether there is such a day
    if vr == "DS" and len(str(value)) > _DIGITS:
        value = str(_decimal(value))
    pydicom.valuerep.validate_value(vr, str(value) if vr in ("DS", "IS") else value, pydicom.config.RAISE)
    return pydicom.valuerep.PersonName(value) if vr == "PN" else value


def _printable(text: str, also: str = "") -> str:
    """Return a text without what would command a terminal, and without half a character."""
    return "".join(c for c in text if c.isprintable() or c in also)


def _own_frame(header: Any) -> str:
    """Return a frame of reference of the series' own, where it says none."""
    import hashlib

    return _uid(hashlib.sha256(str(header.get("SeriesInstanceUID")).encode(errors="replace")), "frame of reference")


# --- what the segmentation says of itself -------------------------------------------------------------------


def _segment(number: int, name: str) -> Any:
    highdicom = optional("highdicom", "dicom", "DICOM SEG")
    codes = optional("pydicom.sr.codedict", "dicom", "DICOM SEG").codes
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=_label(name) or f"label {number}",
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=_concept(codes.SCT, name),
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="pynca", family=codes.DCM.ArtificialIntelligence, version=_version()
        ),
    )


def _label(name: str) -> str:
    """Return a label's name as DICOM can hold it: on one line, and a backslash would divide it."""
    return _printable(" ".join(name.split()).replace("\\", "/"))[:_LONGEST].strip()


def _concept(terms: Any, name: str) -> Any:
    """Return SNOMED's concept of a label's name, "left ventricle" for example; tissue where there is none."""
    keyword = "".join(word[:1].upper() + word[1:] for word in name.replace("_", " ").replace("-", " ").split())
    try:
        return getattr(terms, keyword) if keyword.isidentifier() else terms.Tissue
    except (AttributeError, RuntimeError):  # no concept has that name, or several have
        return terms.Tissue


def _uid(digest: Any, what: str) -> str:
    """Return a UID that is a function of content: a UUID of the standard's own arc."""
    import uuid

    own = digest.copy()
    own.update(what.encode())
    return f"2.25.{uuid.UUID(bytes=own.digest()[:16], version=5).int}"


def _replace(content: Any, old: str, new: str) -> None:
    for element in content.iterall():
        if element.VR == "UI" and element.value == old:
            element.value = new


def _version() -> str:
    from .. import __version__

    return __version__
