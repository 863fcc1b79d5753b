"""The review page: a person compares, rates and corrects answers without knowing whose they are."""
