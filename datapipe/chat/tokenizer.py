"""Chat tokenizer: the base model's tokenizer plus the chat template and special tokens that conversations need."""

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
    """Add the configured template and tokens to a tokenizer; return it unchanged if it has all. Raises ConfigError."""
    settings: dict[str, Any] = json.loads(base.files.get(_SETTINGS, b"{}"))
    base_template = base.files.get(TEMPLATE_FILE, b"").decode() or _inline_template(settings)
    template = _template_of(config.template) or base_template or TEMPLATES["plain"]
    files, end = dict(base.files), None
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    required = [*(CHATML_TOKENS if config.template == "chatml" else ()), *config.added_tokens]
    missing = [token for token in dict.fromkeys(required) if token not in vocabulary]
    if missing:
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
        files["tokenizer.json"] = tokenizer.to_str(pretty=True).encode()
    if config.template == "chatml":
        end = CHATML_END
    if template != base_template or end is not None:
        files[TEMPLATE_FILE] = template.encode()
        settings.pop("chat_template", None)
        files[_SETTINGS] = _dump(settings if end is None else {**settings, "eos_token": end})
        if end is not None and "special_tokens_map.json" in files:
            files["special_tokens_map.json"] = _dump({**json.loads(files["special_tokens_map.json"]), "eos_token": end})
    return TokenizerFiles(name=base.name, files=files)


def _inline_template(settings: dict[str, Any]) -> str | None:
    """Return the template in tokenizer_config.json, where older models store it."""
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named templates
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) else None


def _template_of(name: str | None) -> str | None:
    if name is None or name in TEMPLATES:
        return TEMPLATES.get(name or "")
    try:
        return Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat.template: {name}: cannot be read: {error}; use a Jinja file, or one of {', '.join(TEMPLATES)}"
        ) from None


def _dump(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def write_files(folder: StoragePath, files: TokenizerFiles) -> None:
    """Write a tokenizer as a Hugging Face directory."""
    for name, data in sorted(files.files.items()):
        folder.write(name, data)
