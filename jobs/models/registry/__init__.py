"""The registry of models: versions with their lineage, and aliases that are promoted and rolled back."""
