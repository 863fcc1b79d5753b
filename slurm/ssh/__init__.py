"""Commands on a login node through the system's ssh: connection, bootstrap, helper."""
