"""From finished reconstructions to a better network: labels, corpus, loader, trainer, gate, registry."""
