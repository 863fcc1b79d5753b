"""Receivers of notifications, from a private file of the user: ~/.config/ropewalk/notify.yaml."""

import os
import stat
from collections.abc import Sequence
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.runs.submit.notification import notify_file

Kind = Literal["failed", "hung", "gave_up", "preempted_too_often", "slow", "succeeded", "test"]
USUAL: tuple[Kind, ...] = ("failed", "hung", "gave_up", "preempted_too_often")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Target(_Model):
    """A receiver, and the kinds of events that it gets."""

    name: str = Field(description="of the receiver, for messages; keep it, since what was sent is recorded under it")
    events: tuple[Kind, ...] = USUAL


class CommandTarget(Target):
    """A program that gets the event as JSON on its standard input; exit code 0 accepts it."""

    command: tuple[str, ...] = Field(min_length=1)


class WebhookTarget(Target):
    """An address that gets the event as JSON by POST, signed with `key`; a status of 2xx accepts it."""

    webhook: SecretStr
    key: SecretStr

    @field_validator("webhook")
    @classmethod
    def _is_http(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("https://", "http://")):
            raise ValueError("must begin with https:// or http://")
        return value


class Mail(_Model):
    """A mail server and the addresses of a mail."""

    host: str
    port: int = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str | None = None
    password: SecretStr | None = None
    sender: str
    to: tuple[str, ...] = Field(min_length=1)


class MailTarget(Target):
    """Mail by SMTP; the event's id is the mail's Message-ID."""

    mail: Mail


class AppriseTarget(Target):
    """A service such as Slack, Teams or Telegram, by an address of apprise."""

    apprise: SecretStr


AnyTarget = Annotated[CommandTarget | WebhookTarget | MailTarget | AppriseTarget, Field(union_mode="smart")]


class NotifyConfig(_Model):
    """Content of notify.yaml."""

    targets: tuple[AnyTarget, ...]

    @field_validator("targets")
    @classmethod
    def _have_different_names(cls, targets: tuple[AnyTarget, ...]) -> tuple[AnyTarget, ...]:
        if len({target.name for target in targets}) < len(targets):
            raise ValueError("two targets have the same name")
        return targets


def read_targets() -> Sequence[AnyTarget]:
    """Return the user's receivers; none without a file. Raises ConfigError, whose message has no value of the file."""
    path = notify_file()
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return ()
    with open(descriptor, encoding="utf-8") as stream:
        status = os.fstat(descriptor)
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise ConfigError(f"{path}: others may read or own it, and it has secrets; `chmod 600 {path}`")
        try:
            return NotifyConfig.model_validate(yaml.safe_load(stream)).targets
        except ValidationError as error:
            problems = {f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_input=False)}
            raise ConfigError(f"{path}: {'; '.join(sorted(problems))}") from None
        except (yaml.YAMLError, UnicodeDecodeError):
            raise ConfigError(f"{path}: not YAML; correct the file") from None
