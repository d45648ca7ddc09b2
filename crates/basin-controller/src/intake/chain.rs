//! Pure. What a volume's reads fall through to.

use basin_model::volume::{Volume, VolumeSource};
use basin_node::Chain;

use crate::app::inventory::Snapshot;

/// At most this many files are read through: each one costs memory and latency.
pub const MAX_DEPTH: usize = 16;

/// The chain under a volume with this source: volumes, then at most one image.
/// A link that is missing ends the chain; opening it will say what is missing.
pub fn under(source: VolumeSource, snapshot: &Snapshot) -> Chain {
    let mut chain = Chain::default();
    let mut next = Some(source);
    while let Some(source) = next.take() {
        if chain.volumes.len() > MAX_DEPTH {
            break;
        }
        match source {
            VolumeSource::Blank => {}
            VolumeSource::Image { image } | VolumeSource::LinkedImage { image } => {
                chain.image = snapshot.images.get(&image).map(|i| i.value.clone());
            }
            VolumeSource::Volume { volume } | VolumeSource::LinkedVolume { volume } => {
                if let Some(found) = snapshot.volumes.get(&volume) {
                    next = falls_through(&found.value).then_some(found.value.source);
                    chain.volumes.push(found.value.clone());
                }
            }
        }
    }
    chain
}

/// Whether reads of the volume fall through to its source.
pub fn falls_through(volume: &Volume) -> bool {
    matches!(volume.source, VolumeSource::LinkedImage { .. } | VolumeSource::LinkedVolume { .. })
}
