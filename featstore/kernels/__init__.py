"""Pure array functions; they import `backend` and nothing else of featstore."""
