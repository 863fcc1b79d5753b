"""The loader over a real S3 server that goes away in the middle."""

import threading
from pathlib import Path

import numpy as np
import pytest

from ropewalk.datapipe.loader.loader import Source, TokenLoader
from tests.conftest import S3Server
from tests.fakes.token_files import write_dataset

pytestmark = pytest.mark.s3


@pytest.mark.soak(
    "seconds of a store that is away; test_checkpoints_on_s3_outlive_an_outage has another,"
    " test_s3_holds_the_same_data_set_as_a_disk reads S3"
)
def test_a_server_that_goes_away_is_waited_for(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path / "cache"))
    local = write_dataset(tmp_path / "set", [4000, 3000, 2000])
    bucket = s3_server.bucket()
    s3fs.S3FileSystem(skip_instance_cache=True).put(f"{local}/", f"{bucket}/set/", recursive=True)
    loader = TokenLoader([Source(f"{bucket}/set")], seq_len=64, seed=3)
    s3_server.cut()
    mending = threading.Timer(0.9, s3_server.restore)
    mending.start()
    try:
        read = loader.read(range(300))
    finally:
        mending.join()
        s3_server.restore()
    assert np.array_equal(read, TokenLoader([Source(str(local))], seq_len=64, seed=3).read(range(300)))
