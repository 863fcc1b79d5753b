"""The OpenAI API: requests checked, prompts as tokens, tokens as text, answers as JSON and as a stream."""
