"""Processes that load a model and speak the OpenAI API on one address; each engine is a plug-in."""
