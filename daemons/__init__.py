"""The edge: event loop, sockets, files, signals and the command line."""
