"""DICOM SEG: a mask that refers, slice by slice, to the series it was made from."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_path
from ..rule import UInt8Array
from .base import Volume, optional

SUFFIXES = (".dcm",)
# What a segmentation takes over from its source, and the standard allows to be empty
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName"),
)
_NO_DATE, _NO_TIME = "19000101", "000000"
_SERIES = 1000  # above the numbers of a scanner
_LONGEST = 64  # characters of a name in DICOM


def write(path: Path, mask: UInt8Array, like: Volume, labels: Mapping[int, str]) -> None:
    """Write a mask (column, row, slice) as a binary segmentation: one segment a label, one frame a slice.

    Segments are numbered from 1 in the order of label values, as the standard wants. Nothing in the file depends
    on when or how often it is written.
    """
    import hashlib  # here: it brings OpenSSL, which takes 3 ms

    seg = optional("highdicom.seg", "dicom", "DICOM SEG")
    sources = [_complete(header) for header in like.slices]
    frames = np.zeros((mask.shape[2], mask.shape[1], mask.shape[0]), np.uint8)
    for number, value in enumerate(sorted(labels), start=1):
        frames[mask.transpose(2, 1, 0) == value] = number
    first = sources[0]
    digest = hashlib.sha256(frames.tobytes())
    for text in (*(source.SOPInstanceUID for source in sources), *(labels[value] for value in sorted(labels))):
        digest.update(f"\0{text}".encode())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom|highdicom")  # of what the source breaks in the standard
        try:
            content = seg.Segmentation(
                source_images=sources,
                pixel_array=frames,
                segmentation_type="BINARY",
                segment_descriptions=[_segment(n, labels[v]) for n, v in enumerate(sorted(labels), start=1)],
                series_instance_uid=_uid(digest, "series"),
                sop_instance_uid=_uid(digest, "instance"),
                series_number=_SERIES + int(first.get("SeriesNumber") or 0),
                instance_number=1,
                manufacturer="pynca",
                manufacturer_model_name="pynca",
                software_versions=_version(),
                device_serial_number="none",
                omit_empty_frames=False,
                series_description=f"Segmentation by pynca of {first.get('SeriesDescription', 'a series')}"[:_LONGEST],
            )
            content.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, whatever the source has
            content.ContentDate = first.get("StudyDate") or _NO_DATE
            content.ContentTime = first.get("StudyTime") or _NO_TIME
            _make_repeatable(content, digest)
            with atomic_path(path) as temporary:
                content.save_as(temporary)
        except OSError:
            raise
        except Exception as problem:  # a source can break the standard in any way
            reason = " ".join(str(problem).split()) or type(problem).__name__
            raise ValueError(f"{path} cannot be written: {like.name} lacks what DICOM SEG needs: {reason}") from problem


def _make_repeatable(content: Any, digest: Any) -> None:
    """Take out when it was made, and what is random."""
    del content.InstanceCreationDate, content.InstanceCreationTime
    for item in content.get("ContributingEquipmentSequence", ()):
        item.pop("ContributionDateTime", None)
    for number, item in enumerate(content.DimensionOrganizationSequence):
        _replace(content, item.DimensionOrganizationUID, _uid(digest, f"dimensions {number}"))


def _complete(header: Any) -> Any:
    """Return a header that has, at least empty, what a segmentation must take over."""
    complete = copy.copy(header)
    for keyword in _MAY_BE_EMPTY:
        if keyword not in complete:
            setattr(complete, keyword, None)
    return complete


def _segment(number: int, name: str) -> Any:
    highdicom = optional("highdicom", "dicom", "DICOM SEG")
    codes = optional("pydicom.sr.codedict", "dicom", "DICOM SEG").codes
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:_LONGEST],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=_concept(codes.SCT, name),
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="pynca", family=codes.DCM.ArtificialIntelligence, version=_version()
        ),
    )


def _concept(terms: Any, name: str) -> Any:
    """Return SNOMED's concept of a label's name, "left ventricle" for example; tissue where there is none."""
    keyword = "".join(word[:1].upper() + word[1:] for word in name.replace("_", " ").replace("-", " ").split())
    return getattr(terms, keyword, terms.Tissue) if keyword.isidentifier() else terms.Tissue


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
