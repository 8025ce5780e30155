"""Parts for the servers that run an application: one room for each server."""
