"""The review page: a person compares, rates and corrects answers without knowing which version gave them."""
