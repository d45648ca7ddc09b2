//! Deletes a volume. Its record says `deleting` from the start, so nothing begins
//! to use it; from there on it only goes forward.

use basin_model::task::Problem;
use basin_model::volume::Volume;
use basin_store::records::TxnBuilder;
use serde::{Deserialize, Serialize};

use super::volumes;
use crate::app::Services;
use crate::workflow::{Step, StepContext, Workflow};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VolumeDelete {
    volume: Volume,
}

impl VolumeDelete {
    pub fn new(volume: Volume) -> VolumeDelete {
        VolumeDelete { volume }
    }

    async fn remove(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        volumes::remove(&self.volume, cx).await
    }
}

impl Workflow for VolumeDelete {
    type Services = Services;
    const KIND: &'static str = "volume-delete";

    fn subject(&self) -> String {
        format!("volume/{}", self.volume.id)
    }

    fn steps() -> Vec<Step<Self>> {
        vec![Step::forward("remove", Self::remove)]
    }

    fn on_done(&self) -> TxnBuilder {
        volumes::forget(&self.volume)
    }
}
