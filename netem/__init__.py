"""Links: real TCP over kernel-shaped (or, as a fallback, user-space paced) links whose rates change live.

`helper.session.LinkSession` starts the privileged helper process. `helper.client.LinkClient` requests sockets, grants
and counters from it, from any other process. All rates are link-layer rates in decimal Mbit/s; see `wire`.
"""
