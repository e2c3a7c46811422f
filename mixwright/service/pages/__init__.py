"""The pages for people: what they show, how it is drawn, and how it is written as HTML."""
