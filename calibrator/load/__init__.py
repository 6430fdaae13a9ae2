"""Load generators: they hold a number of requests in flight and report what was decided about each."""
