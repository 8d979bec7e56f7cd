"""Reading from the DICOMweb server of the studies through this one, for the OHIF viewer.

Nothing but the path of a request is passed on, and it can name nothing outside the address of the studies.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

logger = logging.getLogger("monai_wscxr")

PREFIX = "/proxy/dicom"
_SEGMENT = re.compile(r"[A-Za-z0-9_,~-][A-Za-z0-9._,~-]*")
_SECONDS = (10.0, 60.0)  # to connect, and between two parts of an answer
_KEPT = ("content-type", "content-encoding", "content-length")  # no cookies, no addresses


def archive_path(path: str) -> str | None:
    """Return the part of an address after `PREFIX` if it is a plain DICOMweb path, else None.

    Args:
        path: path of the request, decoded once. What still holds a percent sign afterwards was encoded twice. Only letters,
            digits and `._,~-` are accepted, segments may not start with a dot, and only the last one may be empty.
    """
    if not path.startswith(PREFIX + "/"):
        return None
    wanted = path[len(PREFIX) + 1 :]
    parts = wanted.removesuffix("/").split("/")
    return wanted if all(_SEGMENT.fullmatch(part) for part in parts) else None


@dataclass(frozen=True)
class ArchiveAnswer:
    """An answer of the archive.

    Attributes:
        status: HTTP status.
        headers: content type, encoding and length.
        content: the body in parts, as it was sent.
    """

    status: int
    headers: Mapping[str, str]
    content: Iterator[bytes]


@dataclass
class ArchiveProxy:
    """Reads from an archive.

    Attributes:
        address: address of the DICOMweb service.
        login: user name and password, sent to this address only; None without.
        prefixes: what the archive puts before the paths of "qido", "wado" and "stow".
    """

    address: str
    login: tuple[str, str] | None = None
    prefixes: Mapping[str, str] = field(default_factory=dict)

    def url(self, path: str) -> str:
        """Return the address of a path that `archive_path` has accepted, with MONAI Label's services as first segment."""
        service, _, rest = path.partition("/")
        if service not in ("qido", "wado", "stow"):
            return f"{self.address.rstrip('/')}/{path}"
        # OHIF asks for metadata by QIDO
        prefix = self.prefixes.get("wado" if rest.endswith("metadata") and service == "qido" else service, "")
        return "/".join(part for part in (self.address.rstrip("/"), prefix, rest) if part)

    def get(self, path: str) -> ArchiveAnswer | None:
        """Get what the archive has at a path; None when it does not answer, or answers with another address."""
        import requests  # comes with MONAI Label's environment

        url = self.url(path)
        here, there = urlsplit(self.address), urlsplit(url)
        if (here.scheme, here.netloc) != (there.scheme, there.netloc) or ".." in there.path.split("/"):
            return None
        try:
            answer = requests.get(url, auth=self.login, stream=True, allow_redirects=False, timeout=_SECONDS)
        except requests.RequestException as error:
            logger.warning("the DICOMweb server does not answer (%s)", type(error).__name__)
            return None
        if 300 <= answer.status_code < 400 and answer.status_code != HTTPStatus.NOT_MODIFIED:
            answer.close()
            logger.warning("the DICOMweb server redirected a request; redirects are not followed")
            return None
        headers = {name: value for name, value in answer.headers.items() if name.lower() in _KEPT}
        return ArchiveAnswer(answer.status_code, headers, answer.raw.stream(1 << 16, decode_content=False))
