"""Texts that contain items of an evaluation set, found by n-grams of words of which one may have changed."""
