"""Extract texts from web archives (WARC, WET) with fastwarc and resiliparse."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from ropewalk.cluster.errors import ConfigError, StorageError
from ropewalk.datapipe.inputs.streams import DamagedStreamError

MISSING_LIBRARY = "reading web archives needs fastwarc and resiliparse: pip install ropewalk[web]"


class _Chunks:
    """File object over chunks of bytes for fastwarc. Damage ends the stream and is stored in `damage`."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.rest, self.position = chunks, b"", 0
        self.damage: DamagedStreamError | None = None

    def read(self, size: int = 1 << 20) -> bytes:
        if not self.rest:
            try:
                self.rest = next(self.chunks, b"")
            except DamagedStreamError as error:
                self.damage = error
        data, self.rest = (self.rest, b"") if size < 0 else (self.rest[:size], self.rest[size:])
        self.position += len(data)
        return data

    def tell(self) -> int:
        return self.position


def read_pages(chunks: Iterator[bytes], longest: int, main_content: bool) -> Iterator[tuple[str | None, str, str | None, str]]:
    """Yield each response or conversion record as (id, host, text, rejection reason). Raises DamagedStreamError, ConfigError."""
    try:
        from fastwarc.warc import ArchiveIterator, WarcRecordType  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError(MISSING_LIBRARY) from None
    wanted = WarcRecordType.response | WarcRecordType.conversion
    stream: Any = _Chunks(chunks)
    try:
        for record in ArchiveIterator(stream, record_types=wanted, parse_http=True, auto_decode="all", stream_detect=False):
            host = urlsplit(record.headers.get("WARC-Target-URI") or "").hostname or ""
            text, reason = _text(record, longest, main_content)
            if stream.damage:
                break  # this record is incomplete
            yield record.headers.get("WARC-Record-ID") or None, host, text, reason
    except BaseException as error:  # a Rust panic of the library is not an Exception
        broken = isinstance(error, (ValueError, OSError)) or type(error).__name__ == "PanicException"
        if isinstance(error, StorageError) or not broken:
            raise
        raise DamagedStreamError(f"warc: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None
    if stream.damage:
        raise stream.damage


def _text(record: Any, longest: int, main_content: bool) -> tuple[str | None, str]:
    """Return the text of a page, or the reason why it is rejected."""
    from resiliparse.extract.html2text import extract_plain_text  # noqa: PLC0415
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding  # noqa: PLC0415
    from resiliparse.parse.html import HTMLTree  # noqa: PLC0415

    if record.http_headers is not None and str(record.http_headers.status_code) != "200":
        return None, "http_status"
    kind = (record.http_content_type or record.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
    body = record.reader.read(longest + 1)
    if len(body) > longest:
        return None, "page_too_large"
    charset = str(record.http_charset or detect_encoding(body) or "utf-8")
    if kind == "text/plain":
        return bytes_to_str(body, charset), ""
    if kind not in {"text/html", "application/xhtml+xml"}:
        return None, "not_a_page"
    return str(extract_plain_text(HTMLTree.parse_from_bytes(body, charset), main_content=main_content)), ""
