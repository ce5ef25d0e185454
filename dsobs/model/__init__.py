"""The types that travel through dsobs. Nothing here does input or output or imports the rest of dsobs."""
