"""The types that travel through dsobs. Nothing here does input or output, and nothing here imports the rest of dsobs."""
