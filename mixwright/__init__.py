"""mixwright curates and selects training data for language models.

Importing the package loads none of the heavy libraries (torch, faiss, Ray, FastAPI): each of them is
imported inside the function that needs it.
"""

__version__ = "0.1.0"
