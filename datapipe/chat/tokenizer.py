"""The tokenizer of a chat: that of the base model, with the template and the tokens that the conversations need."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.chat.built_in import CHATML_END, CHATML_TOKENS, TEMPLATES
from ropewalk.datapipe.chat.config import ChatConfig
from ropewalk.datapipe.tokens.tokenizer import TokenizerFiles

TEMPLATE_FILE = "chat_template.jinja"
_SETTINGS = "tokenizer_config.json"


def chat_files(base: TokenizerFiles, config: ChatConfig) -> TokenizerFiles:
    """The base model's tokenizer with the template that is asked for; unchanged where it has all. Raises ConfigError."""
    settings: dict[str, Any] = json.loads(base.files.get(_SETTINGS, b"{}"))
    own = base.files.get(TEMPLATE_FILE, b"").decode() or _inline(settings)
    template = _template_of(config.template) or own or TEMPLATES["plain"]
    files, end = dict(base.files), None
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    known = tokenizer.get_vocab(with_added_tokens=True)
    wanted = [*(CHATML_TOKENS if config.template == "chatml" else ()), *config.added_tokens]
    missing = [token for token in dict.fromkeys(wanted) if token not in known]
    if missing:
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
        files["tokenizer.json"] = tokenizer.to_str(pretty=True).encode()
    if config.template == "chatml":
        end = CHATML_END
    if template != own or end is not None:
        files[TEMPLATE_FILE] = template.encode()
        settings.pop("chat_template", None)
        files[_SETTINGS] = _dumped(settings if end is None else {**settings, "eos_token": end})
        if end is not None and "special_tokens_map.json" in files:
            files["special_tokens_map.json"] = _dumped({**json.loads(files["special_tokens_map.json"]), "eos_token": end})
    return TokenizerFiles(name=base.name, files=files)


def _inline(settings: dict[str, Any]) -> str | None:
    """The template inside tokenizer_config.json, as older models keep it."""
    found = settings.get("chat_template")
    if isinstance(found, list):  # several by name
        found = {one["name"]: one["template"] for one in found}.get("default")
    return found if isinstance(found, str) else None


def _template_of(name: str | None) -> str | None:
    if name is None or name in TEMPLATES:
        return TEMPLATES.get(name or "")
    try:
        return Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat.template: {name}: cannot be read: {error}; give a Jinja file, or one of {', '.join(TEMPLATES)}"
        ) from None


def _dumped(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def write_files(place: StoragePath, files: TokenizerFiles) -> None:
    """Write a tokenizer as a Hugging Face directory."""
    for name, data in sorted(files.files.items()):
        place.write(name, data)
