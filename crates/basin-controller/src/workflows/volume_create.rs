//! Makes a volume.
//!
//! Reserved at the start: its record (`creating`), its name, and a lock on the
//! volume that it copies, if it copies one.
//!
//! | step | does                                                  | undone by         |
//! |------|-------------------------------------------------------|-------------------|
//! | make | the file on the datastore                             | deleting the file |
//! | end  | `ready`, lock released; or all that was reserved goes |                   |

use basin_model::task::Problem;
use basin_model::volume::Volume;
use basin_store::records::TxnBuilder;
use serde::{Deserialize, Serialize};

use super::volumes;
use crate::app::Services;
use crate::workflow::{Step, StepContext, Workflow};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VolumeCreate {
    volume: Volume,
}

impl VolumeCreate {
    pub fn new(volume: Volume) -> VolumeCreate {
        VolumeCreate { volume }
    }

    async fn make(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        volumes::make(&self.volume, cx).await
    }

    async fn remove(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        volumes::remove(&self.volume, cx).await
    }
}

impl Workflow for VolumeCreate {
    type Services = Services;
    const KIND: &'static str = "volume-create";

    fn subject(&self) -> String {
        format!("volume/{}", self.volume.id)
    }

    fn steps() -> Vec<Step<Self>> {
        vec![Step::undoable("make", Self::make, Self::remove)]
    }

    fn on_done(&self) -> TxnBuilder {
        volumes::publish(&self.volume)
    }

    fn on_undone(&self) -> TxnBuilder {
        volumes::give_up(&self.volume)
    }
}
