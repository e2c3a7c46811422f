"""What things are: document rows, references, manifests, mixtures and requests. No work is done here."""
