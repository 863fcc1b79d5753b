"""The distill job: a student that learns from a teacher."""
