"""Which images show the same patient: by the datalist, by the file names of known collections, or by the DICOM header.

The first of these that names a patient counts:

1. the `patient` of the datalist;
2. the file name or path in a collection that numbers its patients there (`patient_of`);
3. PatientID in the header of a DICOM file, unless it is a placeholder such as "anonymous".

An image without any of them is a patient of its own. A warning names images that a header calls one patient and a datalist
or file name several; the header does not count then. Names that differ only in blanks, capitals, leading zeros or a decimal
".0" are one patient, with a warning: `001`, `1` and `1.0` or `P1` and `p1` mostly come from a table that lost its types.

Nothing of a header leaves this module in clear: a patient known by the header only is called by a digest of the number.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from monai_wscxr.data.radiograph.base import quiet
from monai_wscxr.data.radiograph.head import read_head
from monai_wscxr.system.progress import progress_bar

logger = logging.getLogger("monai_wscxr")

_ZHANGLAB = re.compile(
    r"(person\d+_(?:bacteria|virus))_\d+"  # the copy with class folders
    r"|((?:NORMAL\d*-)?IM-\d+)-\d+"
    r"|((?:BACTERIA|VIRUS|NORMAL)-\d+)-\d+$",  # the renamed release: class, patient, image of the patient
    re.IGNORECASE,
)
_NIH = re.compile(r"(000\d{5})_\d{3}(?!\d)")  # 30,805 patients; dates such as 20240131_001 do not match
_CHEXPERT = re.compile(r"(?:^|/)(patient\d{5,6})[/_-]study\d+[/_-][^/]*$", re.IGNORECASE)
_MIMIC = re.compile(r"(?:^|/)p(\d{8})[/_-]s\d{8}[/_-][^/]*$", re.IGNORECASE)

_PLACEHOLDERS = frozenset(
    (
        *(
            "",
            "0",
            "-",
            "?",
            "anon",
            "anonymous",
            "anonymized",
            "anonymised",
            "deidentified",
            "de-identified",
            "id",
            "n/a",
        ),
        *(
            "na",
            "nan",
            "no id",
            "noid",
            "none",
            "null",
            "patient",
            "patientid",
            "patient id",
            "removed",
            "unknown",
            "xxx",
        ),
    )
)
_THREADS = 8
_SHOWN_FROM = 500  # files; fewer take less than a second

_known: dict[tuple[str, int, int, int], str | None] = {}  # headers that were read, by file
_lock = threading.Lock()


@dataclass(frozen=True)
class Mention:
    """What is known about the patient of an image before its header is read.

    Attributes:
        image: the file.
        stated: the patient in the datalist; None or blank without.
        own: the patient that the image is where nothing names one.
    """

    image: str
    stated: str | None
    own: str


def patient_of(name: str) -> str | None:
    """Return the patient in a file name or path of a known collection, or None for any other.

    ZhangLab: `person63_bacteria_306` gives `person63_bacteria`, `BACTERIA-1008087-0001` gives `BACTERIA-1008087` and
    `NORMAL2-IM-0381-0001` gives `NORMAL2-IM-0381`. The class is part of the patient, because the classes seem to be numbered
    independently: `person63_bacteria` and `person63_virus` are two children. NIH: `00000001_000` gives `00000001`. CheXpert:
    `patient00001/study1/view1_frontal` gives `patient00001`. MIMIC-CXR: `p10000032/s50414267/NAME` gives `10000032`. VinDr-CXR
    and RSNA have no patients in their names.

    Args:
        name: a file name, with or without folders and extension.
    """
    path = name.replace(os.sep, "/")
    file = path.rpartition("/")[2]
    found = _ZHANGLAB.match(file.partition(".")[0]) or _NIH.match(file) or _CHEXPERT.search(path) or _MIMIC.search(path)
    return next((group for group in found.groups() if group), None) if found else None


def patient_key(text: str) -> str:
    """Return what all spellings of a patient have in common: no capitals, no leading zeros, no ".0", no outer blanks."""
    key = " ".join(unicodedata.normalize("NFKC", text).replace("\0", " ").split()).casefold()
    key = re.sub(r"^(\d+)\.0+$", r"\1", key)
    return re.sub(r"(?<![\d.])0+(?=\d)", "", key)


def is_placeholder(text: str) -> bool:
    """Tell whether a patient's name or number stands for a missing one, as "unknown", "anonymous" or "nan"."""
    return patient_key(text) in _PLACEHOLDERS


def identify(mentions: Sequence[Mention], source: str) -> list[str]:
    """Return the patient of each image; equal strings are one patient.

    Where all spellings of a patient agree, the patient is called as in the datalist or the file name; otherwise by the first
    spelling in alphabetical order; by a digest where only a header names the patient.

    Args:
        mentions: images of all parts of a data set together.
        source: the data set, for the log.

    Warns in the log about spellings that were joined, about placeholders in the place of patients, and about headers that
    contradict the datalist.
    """
    named: list[str | None] = []
    placeholders = 0
    for mention in mentions:
        stated = (mention.stated or "").strip()
        if stated and is_placeholder(stated) and patient_key(stated) != "0":
            placeholders += 1
            stated = ""
        named.append(stated or patient_of(mention.image))
    headers = header_patients([mention.image for mention in mentions])
    _report_contradictions(source, mentions, named, headers)
    spellings: dict[str, dict[str, str]] = {}  # by digest: spelling and its first image
    for mention, name in zip(mentions, named, strict=True):
        if name is not None:
            spellings.setdefault(patient_digest(name), {}).setdefault(name, mention.image)
    patients, unnamed = [], 0
    for mention, name in zip(mentions, named, strict=True):
        digest = patient_digest(name) if name is not None else headers.get(mention.image)
        if digest is None:
            unnamed += 1
            patients.append(mention.own)
        else:
            patients.append(min(spellings.get(digest, {digest: ""})))
    _report(source, spellings, placeholders, len(mentions), unnamed)
    return patients


def header_patients(files: Iterable[str]) -> dict[str, str]:
    """Return digests of the patients in DICOM headers, by file; files of other formats and without a patient are missing.

    At most 1 MiB of each file is read, once in the life of the process as long as the file does not change. A progress bar
    shows where 500 files or more have not been read before.
    """
    files = list(dict.fromkeys(files))
    found: dict[str, str] = {}
    with _lock:
        read = {file for file, *_ in _known}
    shown = sum(file not in read for file in files) >= _SHOWN_FROM
    with quiet, progress_bar(len(files), "patients", shown) as bar, ThreadPoolExecutor(_THREADS) as pool:
        for file, patient in zip(files, pool.map(_header_patient, files), strict=True):
            bar.update()
            if patient is not None:
                found[file] = patient
    return found


def _header_patient(file: str) -> str | None:
    """Return the digest of the PatientID in a DICOM file; None for other files, and without a usable PatientID."""
    try:
        state = os.stat(file)
        if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait for its writer
            return None
        key = (file, state.st_ino, state.st_size, state.st_mtime_ns)
        with _lock:
            if key in _known:
                return _known[key]
        header = read_head(file, ("PatientID",))
        number = "" if header is None else str(header.get("PatientID") or "")
        patient = None if is_placeholder(number) else patient_digest(number)
    except Exception:  # a damaged header fails in many ways; reading the image will name the reason
        return None
    with _lock:
        _known[key] = patient
    return patient


def patient_digest(text: str) -> str:
    """Return the pseudonym of a patient who is known by a header only, the same for all spellings."""
    digest = hashlib.blake2b(patient_key(text).encode(), digest_size=8, person=b"patient")
    return f"patient-{digest.hexdigest()}"


def _report_contradictions(
    source: str, mentions: Sequence[Mention], named: Sequence[str | None], headers: dict[str, str]
) -> None:
    """Warn about patients by DICOM header that are several patients by datalist or file name."""
    stated: dict[str, dict[str, str]] = {}  # by the header's digest: digest of the patient, and its first image
    for mention, name in zip(mentions, named, strict=True):
        header = headers.get(mention.image)
        if name is not None and header is not None:
            stated.setdefault(header, {}).setdefault(patient_digest(name), mention.image)
    several = [found for found in stated.values() if len(found) > 1]
    if not several or (len(stated) == 1 and len(several[0]) > 2):  # one number for everybody is a placeholder
        return
    first, second = list(several[0].values())[:2]
    logger.warning(
        "%s: %d patient(s) by DICOM header have several names in the datalist or in file names (first: %s and %s). The names "
        "count, so images of one person may lie on two sides of a split; correct the names if the headers are right",
        *(source, len(several), first, second),
    )


def _report(source: str, spellings: dict[str, dict[str, str]], placeholders: int, total: int, unnamed: int) -> None:
    guessed = [found for found in spellings.values() if len(found) > 1]
    if guessed:
        first, second = [Path(guessed[0][spelling]).name for spelling in sorted(guessed[0])][:2]
        logger.warning(
            "%s: %d patient(s) are spelled in several ways that differ in capitals, leading zeros or a decimal .0 (first: "
            "%s and %s). Each is taken for one patient; if they are different, give them clearly different names",
            *(source, len(guessed), first, second),
        )
    if placeholders:
        logger.warning(
            "%s: %d image(s) have a placeholder such as unknown or nan as patient, which counts as none",
            source,
            placeholders,
        )
    if unnamed:
        logger.info(
            "%s: %d of %d images name no patient by datalist, file name or DICOM header; each is a patient of its own",
            *(source, unnamed, total),
        )
