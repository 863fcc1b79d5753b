"""Two hours of load and random faults."""

import os
from pathlib import Path

import pytest

from tests.chaos.campaign.__main__ import campaign, parse
from tests.chaos.campaign.report import as_text

MINUTES_VARIABLE = "ROPEWALK_CAMPAIGN_MINUTES"


@pytest.mark.soak("two hours, or as many minutes as $ROPEWALK_CAMPAIGN_MINUTES says")
@pytest.mark.timeout(4 * 3600)
@pytest.mark.usefixtures("alone_with_ray")
def test_a_serving_run_is_disturbed_for_hours(tmp_path: Path) -> None:
    minutes = os.environ.get(MINUTES_VARIABLE, "120")
    report = campaign(parse(["--minutes", minutes, "--out", str(tmp_path / "report")]))
    assert not report["missed"], as_text(report)
