"""Processes that load a model and serve it over the OpenAI API; each engine is a plug-in."""
