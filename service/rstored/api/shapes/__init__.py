"""The shapes of bodies and the parameters of queries, a module for each kind of thing. OpenAPI describes them."""
