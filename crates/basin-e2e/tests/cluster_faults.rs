//! What may befall a cluster while it works: the server that leads dies at any place of a
//! move or of a drain, storage is full, and servers lose each other.

#[path = "cluster_faults/drain.rs"]
mod drain;
#[path = "cluster_faults/full.rs"]
mod full;
#[path = "cluster_faults/leader_dies.rs"]
mod leader_dies;
#[path = "cluster_faults/parted.rs"]
mod parted;
#[path = "migrate/scene.rs"]
mod scene;
