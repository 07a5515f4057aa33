"""HTTP/1.1: connections, the bounds on them, and what goes over them."""
