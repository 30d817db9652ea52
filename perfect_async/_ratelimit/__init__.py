"""Pure arithmetic of the request limits: the window, promised polls, and what answers reveal."""
