//! Grows a volume, under a lock that keeps VMs from starting on it. The lock was
//! taken at the start, and goes with the end, whichever it is.

use basin_model::Bytes;
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_model::volume::Volume;
use basin_store::records::TxnBuilder;
use serde::{Deserialize, Serialize};

use crate::app::Services;
use crate::app::nodes::refused;
use crate::intake::reach;
use crate::workflow::{Step, StepContext, Workflow};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VolumeGrow {
    volume: Volume,
    size: Bytes,
}

impl VolumeGrow {
    pub fn new(volume: Volume, size: Bytes) -> VolumeGrow {
        VolumeGrow { volume, size }
    }

    /// A file that has grown and whose record has not is harmless: the next
    /// growth to this size finds it done. So there is nothing to undo.
    async fn grow(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let local = cx.services.nodes.local();
        let host = reach::choose_for(&self.volume, local, &cx.services.inventory.read())?;
        let node = cx.services.nodes.get(host)?;
        node.grow_volume(&self.volume, self.size).await.map_err(refused)
    }

    fn unlock(&self) -> TxnBuilder {
        TxnBuilder::new().delete(keys::lock(Kind::Volume, self.volume.id))
    }
}

impl Workflow for VolumeGrow {
    type Services = Services;
    const KIND: &'static str = "volume-grow";

    fn subject(&self) -> String {
        format!("volume/{}", self.volume.id)
    }

    fn steps() -> Vec<Step<Self>> {
        vec![Step::without_undo("grow", Self::grow)]
    }

    fn on_done(&self) -> TxnBuilder {
        let grown = Volume { size: self.size, ..self.volume.clone() };
        self.unlock().put(keys::volume(self.volume.id), &grown)
    }

    fn on_undone(&self) -> TxnBuilder {
        self.unlock()
    }
}
