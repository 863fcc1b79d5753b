"""The group of ranks: what it refuses to form."""

import pytest

from cluster.errors import ConfigError
from sharding.group import process_group


def test_a_store_of_a_dead_group_is_refused_rather_than_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(ConfigError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"), process_group():
        pass
