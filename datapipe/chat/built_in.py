"""Chat templates for tokenizers without one. Both mark the text to train on by `{% generation %}`."""

# A turn is a heading with its role, and its text. The end-of-document token ends an answer, so that any tokenizer works.
_PLAIN = """{%- for message in messages %}
{{- '### ' + message['role'] + '\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{ (message['content'] or '') + eos_token }}{% endgeneration %}{{ '\n' }}
{%- else %}
{{- message['content'] + '\n\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"""

_CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{ (message['content'] or '') + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}
{%- else %}
{{- message['content'] + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

TEMPLATES = {"plain": _PLAIN, "chatml": _CHATML}
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
CHATML_END = "<|im_end|>"
