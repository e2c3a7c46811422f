"""Exports: a mixture's rows, weights and stages in the forms that trainers read."""
