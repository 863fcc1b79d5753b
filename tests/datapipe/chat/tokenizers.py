"""A small tokenizer for tests of conversations: bytes, a few merges, and special tokens of a chat."""

import json
from pathlib import Path

from ropewalk.datapipe.tokens.tokenizer import train_tokenizer

WORDS = "the rope is laid from strands and the strands from yarns twisted in a long straight lane by one walker user assistant"
STOCK = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer(folder: Path, template: str | None = STOCK, vocabulary: str = WORDS) -> Path:
    """A byte-level BPE of some 320 tokens; with a template it has the tokens of ChatML, and pads with its end of turn."""
    from tokenizers import AddedToken, Tokenizer

    files = train_tokenizer([vocabulary] * 3, 340).files
    settings = json.loads(files["tokenizer_config.json"])
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    folder.mkdir(parents=True, exist_ok=True)
    if template is not None:
        tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
        settings |= {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}  # the trap: padding is the end of a turn
        (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
