"""Links: real TCP over kernel-shaped (or, failing that, user-space paced) links with limits that change live.

`session.LinkSession` starts the helper process that owns all privilege; `client.LinkClient` asks it for sockets, grants
and counters from any other process. Rates are link-layer rates in decimal Mbit/s throughout; see `wire`.
"""
