"""Load: what is asked, when, by whom, and whether every answer was right."""
