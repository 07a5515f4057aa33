"""rstore and what it is measured against, a module each: servers, and programs of their own environment."""
