"""The distill job: train a student on its teacher's distribution."""
