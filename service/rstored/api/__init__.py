"""The API: the routes, and what each request passes on its way: access, parameters, bodies and problems."""
