"""python -m ropewalk.jobs.serving.serve.gateway SETTINGS.json: the keeper of an endpoint, which starts its gateways."""

import argparse
import logging
import sys
from pathlib import Path

from ropewalk.cluster.errors import EXIT_USER_MISTAKE, ConfigError
from ropewalk.jobs.serving.serve.gateway.settings import read_settings
from ropewalk.jobs.serving.serve.gateway.sockets.keeper import Keeper


def main() -> None:
    """Run an endpoint until SIGTERM; exit 2 with one line for a mistake in the settings."""
    parser = argparse.ArgumentParser(
        prog="python -m ropewalk.jobs.serving.serve.gateway",
        description="Single address of an endpoint: forwards requests to the replicas in routes.json, and loses none.",
    )
    parser.add_argument("settings", type=Path, help="JSON file with settings, see jobs/serving/serve/gateway/settings.py")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s keeper %(levelname)s %(message)s")
    try:
        keeper = Keeper(read_settings(arguments.settings), arguments.settings)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_USER_MISTAKE)
    keeper.run()


if __name__ == "__main__":
    main()
