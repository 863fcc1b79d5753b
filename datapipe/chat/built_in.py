"""Chat templates for tokenizers that have none. Both say by `{% generation %}` what is learnt."""

# A turn is a heading with its role, and its text. The end-of-document token closes an answer, so that any tokenizer will do.
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
