"""Imports that change the environment and the module path once, before a test is watched for that."""

import ray.tune  # noqa: F401
