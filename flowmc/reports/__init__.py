"""What people read of a result: text, pages and figures."""
