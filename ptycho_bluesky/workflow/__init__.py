"""Around the data service: the embedded Tiled server, what lies where in Tiled, the document writer, the worker."""
