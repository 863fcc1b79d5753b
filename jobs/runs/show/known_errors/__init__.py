"""What errors of programs mean, and what to do about them."""
