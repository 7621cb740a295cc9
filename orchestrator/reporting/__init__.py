"""Tables for people: figures, and one page of HTML."""
