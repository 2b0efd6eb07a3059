"""Speed, latency and memory of a bundle on this machine, by runtime, and beside a peer."""
