"""What a class of QuPath means in coded terms: the category and type that segments and annotation groups carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

MAX_LABEL = 64
"""Characters of a label in DICOM (LO)."""
NO_CLASS = "Outline"
"""Label of outlines without a class."""


@dataclass(frozen=True, slots=True)
class Term:
    """A concept of a coding scheme, with the words that people read."""

    scheme: str
    value: str
    meaning: str

    def code(self) -> Code:
        """As highdicom takes it."""
        from pydicom.sr.coding import Code

        return Code(self.value, self.scheme, self.meaning)


@dataclass(frozen=True, slots=True)
class CodedClass:
    """A class as a segment or annotation group names it."""

    label: str
    category: Term
    type: Term


CodeTable = Mapping[str, tuple[str, str]]
"""Class name → category and type, each "SCHEME VALUE MEANING"."""

_STRUCTURE = "SCT 91723000 Anatomical Structure"
_ABNORMAL = "SCT 49755003 Morphologically Abnormal Structure"
_ANY = (_STRUCTURE, "SCT 85756007 Tissue")
DEFAULT_CODES: CodeTable = {
    "Tumor": (_ABNORMAL, "SCT 108369006 Neoplasm"),
    "Necrosis": (_ABNORMAL, "SCT 6574001 Necrosis"),
    "Inflammation": (_ABNORMAL, "SCT 409774005 Inflammation"),
    "Stroma": (_STRUCTURE, "SCT 21793004 Connective tissue"),
    "Epithelium": (_STRUCTURE, "SCT 31610004 Epithelium"),
    "Vessel": (_STRUCTURE, "SCT 59820001 Blood Vessel"),
    "Immune cells": (_STRUCTURE, "SCT 56972008 Lymphocyte"),
    "Lymphocyte": (_STRUCTURE, "SCT 56972008 Lymphocyte"),
    "Cell": (_STRUCTURE, "SCT 4421005 Cell"),
    "Nucleus": (_STRUCTURE, "SCT 84640000 Nucleus"),
}
"""QuPath's own classes, and words that need no explanation; any other class is tissue under its own label."""


def parse_term(text: str) -> Term:
    """`"SCT 85756007 Tissue"` as a term. Raises `ValueError`."""
    parts = text.split(maxsplit=2)
    if len(parts) != 3 or len(parts[0]) > 16 or len(parts[1]) > 16 or len(parts[2]) > MAX_LABEL:
        raise ValueError('a code is "SCHEME VALUE MEANING", as in "SCT 85756007 Tissue"')
    return Term(*parts)


def coded_class(name: str | None, table: CodeTable) -> CodedClass:
    """The coded class of QuPath's class `name`; `table` wins over the defaults.

    A derived class ("Tumor: Positive") that is not listed itself means its first part.
    """
    shown = "".join(c for c in name or "" if c.isprintable())
    label = shown.replace("\\", "/").strip()[:MAX_LABEL] or NO_CLASS
    known = {key.casefold(): codes for key, codes in {**DEFAULT_CODES, **table}.items()}
    for candidate in (label, label.partition(":")[0]):
        if found := known.get(candidate.strip().casefold()):
            break
    else:
        found = _ANY
    category, type_ = found
    return CodedClass(label, parse_term(category), parse_term(type_))
