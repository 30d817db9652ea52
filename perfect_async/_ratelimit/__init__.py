"""Pure arithmetic of the request limits: the window, reserved polls, and what answers reveal."""
