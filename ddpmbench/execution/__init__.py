"""How a run is computed: batches, devices, processes, shards that are kept, and resumption."""
