"""Shared by the tests of several packages: the command line, links, workers at sockets, virtual time, processes."""
