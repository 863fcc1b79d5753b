"""Secrets that stand in plain text where none belong: in variables, URLs and logs."""

import re
from collections.abc import Mapping

_SECRET = re.compile(r"(key|token|secret|passw(or)?d|credentials?|_pat|_auth|webhook(_url)?)$", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# passwords in URLs; headers with a literal value; keys of well-known services
_SECRET_TEXT = re.compile(
    r"(?P<url>://)[^/@\s]+:[^/@\s]+(?=@)"
    r"|(?P<header>\bauthorization:\s*(bearer|basic|token)\s+)[^\s'\"$<{]+"
    r"|\b(hf_|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|sk-([a-z0-9]+-)?|AKIA)[A-Za-z0-9]{16,}[\w-]*",
    re.IGNORECASE,
)


def mask_secret_text(text: str) -> str:
    """Replace passwords in URLs, values of authorization headers, and keys of well-known services by `***`."""
    return _SECRET_TEXT.sub(lambda match: f"{match['url'] or match['header'] or ''}***", text)


def check_variables(variables: Mapping[str, str], secret_remedy: str) -> None:
    """Raise ValueError if a variable of an `environment` is not a valid shell name, or it or its value looks like a secret."""
    for name, value in variables.items():
        if _SECRET.search(name) or mask_secret_text(value) != value:
            raise ValueError(f"variable {name} looks like a secret, and {secret_remedy}")
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"variable {name!r}: a name consists of letters, digits and _, and does not begin with a digit")
