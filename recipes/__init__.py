"""The recipes that come with ela-probe, installed as `ela_probe_recipes`; `ela_probe.recipes`
reads them."""
