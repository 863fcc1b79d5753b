"""Keys of a job file that control how documents are read."""

from pydantic import Field

from ropewalk.cluster.section import Section


class ReadRules(Section):
    """Keys of a record that are read, and size limits of documents."""

    id_key: str = Field(default="id", description="key of a document's id; records without one get FILE:LINE")
    text_key: str = Field(default="text", description="key of a document's text")
    source_key: str = Field(default="source", description="key of a document's source; records without one get the file name")
    min_chars: int = Field(default=1, ge=0, description="reject shorter documents")
    max_chars: int | None = Field(default=None, ge=1, description="reject longer documents")
    max_line_mib: float = Field(default=32, gt=0, le=1024, description="reject longer lines and text files, MiB")
    main_content: bool = Field(default=True, description="extract only the main content of web pages (.warc.gz), without menus")
    unit_mib: float | None = Field(
        default=None, gt=0, description="input per task, MiB; unset: a 64th of the input, between 4 and 64"
    )
