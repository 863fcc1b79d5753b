"""Reads of ranges of objects on S3 in the calling thread."""

from functools import lru_cache
from typing import Any

from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.session import Session
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error


def read_range(fs: S3FileSystem, path: str, start: int, stop: int) -> bytes:
    """Read bytes [start, stop) of an object with the options of `fs`, and raise its errors."""
    bucket, key, _ = fs.split_path(path)
    try:
        answer = _client(fs).get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **fs.req_kw)
    except ClientError as error:
        raise translate_boto_error(error) from error
    data: bytes = answer["Body"].read()
    return data


@lru_cache(maxsize=8)
def _client(fs: S3FileSystem) -> Any:
    """Return a client of botocore, which takes half of the CPU of s3fs: that receives bytes in pieces in an event loop."""
    config = {"connect_timeout": fs.connect_timeout, "read_timeout": fs.read_timeout, **fs.config_kwargs}
    keys = {"aws_access_key_id": fs.key, "aws_secret_access_key": fs.secret, "aws_session_token": fs.token}
    options = {"endpoint_url": fs.endpoint_url, "use_ssl": fs.use_ssl, **keys, **fs.client_kwargs}
    if fs.anon:
        config["signature_version"] = UNSIGNED
        options = {name: value for name, value in options.items() if name not in keys}
    return Session(**fs.kwargs).create_client("s3", config=Config(**config), **options)
