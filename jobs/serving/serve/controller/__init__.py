"""The controller: decides which versions run and get traffic, and publishes the routes."""
