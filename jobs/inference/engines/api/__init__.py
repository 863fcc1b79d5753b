"""The OpenAI API: validation of requests, prompts as tokens, tokens as text, answers as JSON and as a stream."""
