"""Results as one page that loads nothing: what is told, tabled and drawn, and its templates."""
