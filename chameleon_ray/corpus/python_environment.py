"""Real text of several domains that is on every machine with Python: what its standard library and installed packages consist of.

It makes a first run possible without a download. The choice is a function of the installed packages alone: paths relative to their root are
sorted by hash, so that two machines with the same packages choose the same files.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

DOMAINS = (
    "python_library",
    "python_packages",
    "cpp_headers",
    "type_stubs",
    "package_metadata",
    "licenses",
    "configuration",
    "documentation",
)

_DOMAIN_OF_SUFFIX = {
    **dict.fromkeys((".h", ".hh", ".hpp", ".hxx", ".cuh"), "cpp_headers"),
    **dict.fromkeys((".yaml", ".yml", ".toml", ".json", ".cfg", ".ini"), "configuration"),
    **dict.fromkeys((".rst", ".md"), "documentation"),
    ".pyi": "type_stubs",
}
_LICENSE_NAME = re.compile(r"(?i)[\w.-]*(licen[cs]e|notice|copying)[\w.-]*$")
_PROSE_SUFFIXES = ("", ".txt", ".md", ".rst")
_EXCLUDED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "node_modules"}
_OWN_PACKAGE = "chameleon_ray"
_MIN_FILE_BYTES = 200
_MAX_FILE_BYTES = 200_000
_MAX_CONFIGURATION_BYTES = 64_000  # larger ones are data tables, which would fill the domain with a handful of files
_MIN_DOMAIN_BYTES = 100_000


def environment_files(bytes_per_domain: int) -> dict[str, list[Path]]:
    """Files of this Python environment by domain, each one document, until a domain has `bytes_per_domain`.

    Chosen are UTF-8 text files without NUL of 200 bytes to 200 KB, each content once; tests, caches, this package and editable installs are
    left out, as they change from run to run or from machine to machine. A domain with less than 100 KB (or less than `bytes_per_domain`,
    when that is smaller) is left out. Cost: one walk over the environment, and reading what is chosen.

    Returns:
        Domain -> files, in the order of `DOMAINS`; empty when the environment has no such text.
    """
    candidates: dict[str, list[tuple[str, str]]] = {domain: [] for domain in DOMAINS}
    for is_library, root in _roots():
        for relative in _walk(root):
            domain = _domain_of(relative, is_library)
            if domain is not None:
                candidates[domain].append((relative, root))
    seen: set[bytes] = set()
    chosen: dict[str, list[Path]] = {}
    for domain, found in candidates.items():
        found.sort(key=lambda candidate: (hashlib.sha256(candidate[0].encode()).digest(), candidate[1]))
        files, num_bytes = _choose(domain, [Path(root, relative) for relative, root in found], bytes_per_domain, seen)
        if num_bytes >= min(bytes_per_domain, _MIN_DOMAIN_BYTES):
            chosen[domain] = files
    return chosen


def document_bytes(path: str | Path) -> bytes:
    """The text of a chosen file: all of it, but for a distribution's METADATA only the description below the header fields."""
    content = Path(path).read_bytes()
    return content.replace(b"\r\n", b"\n").partition(b"\n\n")[2] if Path(path).name == "METADATA" else content


def _choose(domain: str, paths: list[Path], bytes_wanted: int, seen: set[bytes]) -> tuple[list[Path], int]:
    max_bytes = _MAX_CONFIGURATION_BYTES if domain == "configuration" else _MAX_FILE_BYTES
    files: list[Path] = []
    num_bytes = 0
    for path in paths:
        if num_bytes >= bytes_wanted:
            break
        if not _MIN_FILE_BYTES <= path.stat().st_size <= max_bytes:
            continue
        content = document_bytes(path)
        identity = hashlib.sha256(content).digest()
        if len(content) >= _MIN_FILE_BYTES and identity not in seen and _is_text(content):
            seen.add(identity)
            files.append(path)
            num_bytes += len(content)
    return files, num_bytes


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def _domain_of(relative: str, is_library: bool) -> str | None:
    folder, _, name = relative.rpartition("/")
    suffix = os.path.splitext(name)[1].lower()
    if suffix in _PROSE_SUFFIXES and _LICENSE_NAME.match(name):
        return "licenses"
    if ".dist-info" in folder:
        return "package_metadata" if name == "METADATA" else None
    if suffix == ".py":
        return "python_library" if is_library else "python_packages"
    return _DOMAIN_OF_SUFFIX.get(suffix)


def _roots() -> list[tuple[bool, str]]:
    """(whether it is the standard library, folder), each folder once: in most environments purelib and platlib are the same."""
    roots: dict[str, bool] = {}
    for key in ("stdlib", "purelib", "platlib", "include", "platinclude"):
        folder = sysconfig.get_path(key)
        if os.path.isdir(folder):
            roots.setdefault(os.path.realpath(folder), key == "stdlib")
    return [(is_library, folder) for folder, is_library in roots.items()]


def _walk(root: str) -> Iterator[str]:
    """Paths below root, relative to it, with `/`; links are not followed."""
    pending = [""]
    while pending:
        relative = pending.pop()
        with os.scandir(os.path.join(root, relative)) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    yield relative + entry.name
                elif entry.is_dir(follow_symlinks=False) and not _is_excluded(entry):
                    pending.append(f"{relative}{entry.name}/")


def _is_excluded(folder: os.DirEntry[str]) -> bool:
    name = folder.name
    if name in _EXCLUDED_FOLDERS or name.startswith((".", _OWN_PACKAGE)):
        return True
    origin = Path(folder.path, "direct_url.json")
    return name.endswith(".dist-info") and origin.exists() and '"editable": true' in origin.read_text(encoding="utf-8")
