"""The `dev` job: hold a node for ssh sessions, editors and notebooks; submitted by `ropewalk dev`."""
